"""Every slip is answered by one sentence, with status 2, and nothing is lost.

The slips are the rows of tests/support/slips.py. Each is run as the command it
is, in a process of its own (tools/forked.py), in a folder that has what a user
has after some days; afterwards not a byte in it is another one.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import forking
import psutil
import pytest
import slips

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 280  # seconds
MICRO = """\
# A model of a few numbers, for tests.
from __gin__ import dynamic_registration
from t5x_variants.model import network
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
Z_LOSS = """\
from __gin__ import dynamic_registration
from t5x_variants.training import programs
programs.OptimizationConfig."""


class World:
  """The folder that commands run in, and what runs them.

  Attributes:
    folder: see tests/support/slips.py for what is in it.
    pipe: where some commands look for a file, and wait.
    opened: its ends for writing; while one is open they wait.
    printed: what the last command prints, files by 'stdout' and 'stderr'.
    process: the last command.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder / 'world'
    self.printed = {name: folder / name for name in ('stdout', 'stderr')}
    self.pipe = self.folder / 'pipe'
    self.opened = []

  def start(self, argv, stdin: str = os.devnull) -> None:
    """Starts a command: a module of the package, or a script of tools/."""
    name, *rest = argv
    script = name.endswith('.py')
    for path in self.printed.values():
      path.write_text('')
    self.process = forking.start(
      [str(ROOT / 'tools' / name) if script else f't5x_variants.{name}', *rest],
      output=self.printed['stdout'],
      errors=self.printed['stderr'],
      stdin=stdin,
      folder=self.folder,
    )

  def run(self, argv) -> tuple[int, str, str]:
    """Runs a command; its exit status and what it printed to where."""
    self.start(argv)
    return self.ended()

  def ended(self) -> tuple[int, str, str]:
    """Waits for the command that was started last; the same."""
    self.process.join(TIMEOUT)
    if self.process.exitcode is None:
      self.process.kill()
      self.process.join()
    return self.process.exitcode, *(
      path.read_text(encoding='utf-8', errors='replace')
      for path in self.printed.values()
    )

  def listing(self) -> dict[str, str]:
    """Every file and folder, and a digest of its bytes."""
    return {
      str(path.relative_to(self.folder)): (
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
      )
      for path in self.folder.rglob('*')
    }


def fill(world: World) -> None:
  """Makes what tests/support/slips.py names."""
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
  for command in (
    f"""{slips.TRAIN} --gin.MODEL_DIR="'runs/relu'" --gin.LOG_PERIOD=1""",
    f'{slips.PREPARE} --output=prepared --workers=1',
    'export_hf --run=runs/relu --output=hf',
    f'{slips.IMPORT} --checkpoint=hf --output=imported',
  ):
    status, _, told = world.run(slips.argv(command))
    assert status == 0, told
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
    ('word', 'A = 1\nACTIVATION = relu'),
    ('equal', 'B == 3'),
    ('parameter', f'{Z_LOSS}z_los = 0.1'),
    ('no_run', f'{Z_LOSS}z_loss = 0.1'),
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
  shutil.copy(folder / 'runs/relu/config.gin', broken / 'metrics')
  (broken / 'metrics/metrics.jsonl').write_bytes(b'[1]\n5\n\xff\xfe\n')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  found = World(tmp_path_factory.mktemp('slips'))
  found.folder.mkdir()
  fill(found)
  return found


@pytest.mark.parametrize(
  'argv, words',
  [each[1:] for each in slips.SLIPS],
  ids=[each[0] for each in slips.SLIPS],
)
def test_a_slip_is_answered_by_one_sentence(world, argv, words):
  before = world.listing()
  status, _, told = world.run(argv)
  assert 'Traceback' not in told and 'Path not found' not in told
  assert ' at 0x' not in told
  assert told.count('error: ') == 1 and told.startswith('error: '), told
  assert [word for word in words if word not in told] == [], told
  assert status == 2, told
  assert world.listing() == before


def printed(words):
  return lambda world: words in world.printed['stderr'].read_text()


def has_children(world):
  return bool(psutil.Process(world.process.pid).children())


def reads_the_pipe(world):
  """Whether the command has opened it; from then on it waits for a line."""
  try:
    world.opened.append(os.open(world.pipe, os.O_WRONLY | os.O_NONBLOCK))
  except OSError:
    return False
  return True


INTERRUPTED = {
  slips.TRAIN: printed('parameters on'),
  slips.INFER: printed('End with Ctrl-D'),
  f"""{slips.SCORE} --gin.PREDICTIONS="'pipe'\"""": reads_the_pipe,
  f'{slips.PREPARE} --output=new --workers=2': has_children,
  'report run_of_pipe': reads_the_pipe,
}


@pytest.mark.parametrize('command', INTERRUPTED)
def test_ctrl_c_ends_it_with_one_line_and_status_130(world, command):
  os.mkfifo(world.pipe)
  (world.folder / 'run_of_pipe').mkdir()
  (world.folder / 'run_of_pipe/metrics.jsonl').symlink_to(world.pipe)
  shutil.copy(
    world.folder / 'runs/relu/config.gin', world.folder / 'run_of_pipe'
  )
  # A terminal where nobody types.
  os.mkfifo(world.folder / 'terminal')
  terminal = os.open(world.folder / 'terminal', os.O_RDWR)
  try:
    world.start(slips.argv(command), str(world.folder / 'terminal'))
    while not INTERRUPTED[command](world):
      assert world.process.is_alive(), world.ended()
      time.sleep(0.01)
    processes = psutil.Process(world.process.pid).children(recursive=True)
    os.kill(world.process.pid, signal.SIGINT)
    status, _, told = world.ended()
    assert told.splitlines()[-1] == 'Interrupted.', told
    assert 'Traceback' not in told
    assert status == 130
    assert psutil.wait_procs(processes, timeout=30)[1] == []
  finally:
    os.close(terminal)
    while world.opened:
      os.close(world.opened.pop())
    for path in ('new', 'runs/mine', 'run_of_pipe'):
      shutil.rmtree(world.folder / path, ignore_errors=True)
    world.pipe.unlink()
    (world.folder / 'terminal').unlink()


@pytest.mark.parametrize(
  'argv, words',
  [
    (['plot', 'loss', 'runs', '--whole', '-o', 'new.png'], 'ReLU'),
    (['plot', 'activations', 'runs/relu', '--output=new.pdf'], 'encoder 0'),
    (['report', 'runs', '--table=glu_1', '--output=new.md'], '**ReLU**'),
  ],
  ids=['loss', 'activations', 'report'],
)
def test_what_a_run_reached_is_drawn_and_printed(world, argv, words):
  status, out, told = world.run(argv)
  assert status == 0, told
  (written,) = world.folder.glob('new.*')
  assert written.stat().st_size > 1000
  text = written.read_text('utf-8') if written.suffix == '.md' else out
  assert words in text
  written.unlink()


COMMANDS = [
  *(path.stem for path in (ROOT / 't5x_variants').glob('*.py')),
  *(
    str(path.relative_to(ROOT / 'tools'))
    for path in (ROOT / 'tools').rglob('*.py')
  ),
]


def is_command(name):
  path = ROOT / ('tools' if name.endswith('.py') else 't5x_variants') / name
  return "__name__ == '__main__'" in path.with_suffix('.py').read_text('utf-8')


@pytest.mark.parametrize('name', sorted(filter(is_command, COMMANDS)))
def test_help_is_no_error_and_says_what_a_command_does(world, name):
  status, printed, told = world.run([name, '--help'])
  assert status == 0 and told == ''
  assert len(printed.strip().splitlines()[0]) > 20
  assert '__' in name or re.search(r'^ +--\w+', printed, re.MULTILINE)


def test_help_waits_for_no_import_of_jax():
  code = (
    'import runpy, sys\n'
    'for name in sys.argv[1:]:\n'
    '  sys.argv = [name, "--help"]\n'
    '  try:\n'
    '    runpy.run_module("t5x_variants." + name, run_name="__main__", '
    'alter_sys=True)\n'
    '  except SystemExit as end:\n'
    '    assert end.code == 0, name\n'
    '  from absl import flags\n'
    '  flags.FLAGS.remove_flag_values(list(flags.FLAGS))\n'
    '  print("#", name, set(sys.modules)\n'
    '    & {"jax", "matplotlib", "scipy", "tensorflow"})\n'
  )
  names = [name for name in COMMANDS if '.' not in name and '__' not in name]
  names = list(filter(is_command, names))
  done = subprocess.run(
    [sys.executable, '-c', code, *names],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=200,
    check=True,
  )
  for name in names:
    assert f'# {name} set()' in done.stdout


def test_the_package_lists_its_commands(world):
  status, listed, _ = world.run(['__main__'])
  assert status == 0
  names = [n for n in COMMANDS if '.' not in n and '__' not in n]
  for name in filter(is_command, names):
    assert re.search(rf'^python -m t5x_variants\.{name} +\w.*\.$', listed, re.M)


def test_output_that_nobody_reads_is_no_error():
  with subprocess.Popen(
    [sys.executable, '-m', 't5x_variants'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    process.stdout.close()
    assert process.stderr.read() == b''
  assert process.returncode == 141
