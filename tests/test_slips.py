"""Every slip is answered by one sentence, with status 2, and nothing is lost.

The slips are the rows of tests/slips.py. Each is run as the command it is, in
a process of its own (tests/command_server.py), in a folder that has what a
user has after some days; afterwards not a byte in it is another one.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import slips

ROOT = pathlib.Path(__file__).parents[1]
MICRO = """\
# A model of a few numbers, for tests.
from __gin__ import dynamic_registration
from t5x_variants import network
include 'gin/models/tiny.gin'
MLP_DIM = 12
BATCH_SIZE = 4
NUM_MICROBATCHES = 1
network.T5Config:
  emb_dim = 8
  num_heads = 2
  head_dim = 4
  num_encoder_layers = 1
  num_decoder_layers = 1
"""


class World:
  """The folder that commands run in, and what runs them.

  Attributes:
    folder: see tests/slips.py for what is in it.
    printed: what the last command prints, files by 'stdout' and 'stderr'.
    seconds: CPU time of all commands so far.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder / 'world'
    self.printed = {name: folder / name for name in ('stdout', 'stderr')}
    self.seconds = 0.0
    self._server = subprocess.Popen(
      [
        sys.executable,
        # JAX warns that a fork of a process with threads may hang: of one that
        # computes. The server does not.
        *('-W', 'ignore:os.fork'),
        ROOT / 'tests' / 'command_server.py',
      ],
      env=os.environ
      | {
        'PYTHONPATH': str(ROOT),
        'XDG_CACHE_HOME': str(folder / 'cache'),
        # One device, as at home; what is run once is not worth optimising.
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
        'TF_CPP_MIN_LOG_LEVEL': '3',
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._server.stdout.readline() == 'ready\n'

  def start(self, argv, stdin: str = os.devnull) -> int:
    """Starts a command; the number of its process."""
    request = {'argv': argv, 'folder': str(self.folder), 'stdin': stdin}
    request |= {name: str(path) for name, path in self.printed.items()}
    self._server.stdin.write(json.dumps(request) + '\n')
    self._server.stdin.flush()
    return int(self._server.stdout.readline())

  def run(self, argv) -> tuple[int, str, str]:
    """Runs a command; its exit status and what it printed to where."""
    self.start(argv)
    return self.ended()

  def ended(self) -> tuple[int, str, str]:
    """Waits for the command that was started last; the same."""
    status, self.seconds = map(float, self._server.stdout.readline().split())
    return int(status), *(
      path.read_text(encoding='utf-8', errors='replace')
      for path in self.printed.values()
    )

  def made(self, argv) -> None:
    """Runs a command that must do its work."""
    status, _, told = self.run(argv)
    assert status == 0, told

  def listing(self) -> dict[str, str]:
    """Every file and folder, and a digest of its bytes."""
    return {
      str(path.relative_to(self.folder)): (
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
      )
      for path in self.folder.rglob('*')
    }

  def close(self) -> None:
    self._server.communicate(timeout=60)


def fill(world: World) -> None:
  """Makes what tests/slips.py names."""
  folder = world.folder
  for name in ('texts', 'empty', 'broken/folder.png'):
    (folder / name).mkdir(parents=True)
  for name in 'ab':
    documents = [f'Document {name}{i}, ' + 'word ' * 20 for i in range(200)]
    (folder / f'texts/{name}.txt').write_text('\n\n'.join(documents))
  pairs = [
    {'inputs': f'is {n} even?', 'targets': 'no' if n % 2 else 'yes'}
    for n in range(40)
  ]
  (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  (folder / 'file.txt').write_text('To be, or not to be.\n')
  (folder / 'micro.gin').write_text(MICRO)
  run = ["--gin.MODEL_DIR='runs/relu'", '--gin.LOG_PERIOD=1']
  world.made(slips.train(*run))
  world.made(slips.prepare('--output=prepared', '--workers=1'))
  world.made(['export_hf', '--run=runs/relu', '--output=hf'])
  world.made(slips.import_hf('--checkpoint=hf', '--output=imported'))
  break_copies(folder)


def break_copies(folder: pathlib.Path) -> None:
  """Fills broken/."""
  broken = folder / 'broken'
  (broken / 'binary.bin').write_bytes(bytes(range(128, 256)) * 8)
  (broken / 'empty.txt').touch()
  (broken / 'lines.jsonl').write_text('{"inputs": "a"}\n["b"]\n')
  (broken / 'one.jsonl').write_text('{"prediction": "yes"}\n')
  for name, text in (
    ('itself', "include 'broken/itself.gin'"),
    ('gone', "include 'not/there.gin'"),
    ('import', 'import not_there'),
  ):
    (broken / f'{name}.gin').write_text(text + '\n')
  shutil.copytree(folder / 'runs/relu', broken / 'run')
  for path in (broken / 'run/checkpoints').rglob('*'):
    if path.is_file() and path.stat().st_size > 100:
      path.write_bytes(b'x' * 100)
  shutil.copytree(folder / 'prepared', broken / 'stopped')
  (broken / 'stopped/info.json').unlink()
  shutil.copytree(folder / 'prepared', broken / 'damaged')
  (broken / 'damaged/info.json').write_bytes(b'{"task": \xff')
  (broken / 'metrics').mkdir()
  (broken / 'metrics/metrics.jsonl').write_bytes(b'[1]\n5\n\xff\xfe\n')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  found = World(tmp_path_factory.mktemp('slips'))
  found.folder.mkdir()
  fill(found)
  yield found
  found.close()


@pytest.mark.parametrize('name', slips.SLIPS)
def test_a_slip_is_answered_by_one_sentence(world, name):
  argv, words = slips.SLIPS[name]
  before = world.listing()
  status, _, told = world.run(argv)
  assert 'Traceback' not in told
  assert told.count('error: ') == 1 and told.startswith('error: '), told
  sentence = told.removeprefix('error: ')
  assert sentence.rstrip().endswith(('.', ')', '"')), told
  assert [word for word in words if word not in told] == [], told
  assert status == 2, told
  assert world.listing() == before
