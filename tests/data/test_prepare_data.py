"""Preparing: whole or not there, the same bytes however often interrupted."""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_cases import LENGTHS, dataset, prepare

from t5x_variants.data import config
from t5x_variants.data.base._tensorflow import seqio
from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.prepared import writer as preparation
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, documents, sources, vocabularies
from t5x_variants.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """5 files of 150 documents; names their glob."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for shard in range(5):
    found = [
      f'Document {shard} {i} ' + ' '.join(map(str, rng.integers(0, 999, 40)))
      for i in range(150)
    ]
    (folder / f'{shard}.txt').write_text('\n\n'.join(found))
  return str(folder / '*.txt')


@pytest.fixture
def task(text, monkeypatch):
  """A task that streams these files: five shards a split."""
  monkeypatch.setattr(sources, 'IN_MEMORY', 0)
  monkeypatch.setattr(documents, 'BLOCK', 4000)
  seqio.TaskRegistry.remove('test_to_prepare')
  source = corpora.text_files(text, validation_fraction=0.1)
  return tasks.span_corruption(
    source, vocabularies.byte(), 'test_to_prepare', documents_joined=2
  )


def contents(folder):
  return {
    path.name: path.read_bytes()
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file()
  }


class Killed(Exception):
  """Ends a preparation in the middle."""


def test_interrupted_anywhere_and_continued_gives_the_same_bytes(
  task, tmp_path
):
  info = prepare(tmp_path / 'whole', task)
  expected = contents(tmp_path / 'whole')
  total = sum(split.examples for split in info.splits.values())
  assert len(expected) == 10 + 2 + 1 and total > 1500
  # TensorFlow's file system in memory stands in for a bucket.
  prepare('ram://bucket/set', task)
  for name, data in expected.items():
    assert preparation._bytes(f'ram://bucket/set/{name}') == data
  left = interrupted = 0

  def kill_soon(examples):
    nonlocal left
    left -= examples
    if left < 0:
      raise Killed

  while not (tmp_path / 'broken/info.json').exists():
    left = random.randint(0, total // 3)
    try:
      prepare(tmp_path / 'broken', task, report=kill_soon)
    except Killed:
      interrupted += 1
      with pytest.raises(UserError, match=r'no whole set.*begun there'):
        prepared_set.load(tmp_path / 'broken')
  assert interrupted
  assert contents(tmp_path / 'broken') == expected
  assert prepare(tmp_path / 'broken', task) is True  # Nothing to do.


def test_what_is_written_says_what_it_is(task, text, tmp_path):
  info = prepare(tmp_path / 'set', task)
  assert info == prepared_set.load(tmp_path / 'set', task)
  found = json.loads((tmp_path / 'set/info.json').read_text())
  assert found['task'] == task and found['task_feature_lengths'] == LENGTHS
  assert found['vocabulary']['vocab_size'] == 359
  assert found['libraries']['seqio'] and found['documents_joined'] == 2
  train = found['splits']['train']
  assert [shard['file'] for shard in train['shards']] == [
    f'train-{i:05d}-of-00005.array_record' for i in range(5)
  ]
  assert train['examples'] == sum(s['examples'] for s in train['shards'])
  # Documents of a shard joined by two, and no token lost but lone ones.
  documents = seqio.get_mixture_or_task(task).source.get_dataset('train', False)
  size = sum(len(d['text']) for d in documents.as_numpy_iterator())
  assert 0 <= size - train['tokens'] < 0.001 * size
  # Another set is refused, whole or begun.
  source = corpora.text_files(text, validation_fraction=0.2)
  other = tasks.span_corruption(source, vocabularies.byte())
  with pytest.raises(UserError, match=r'holds another set .its task is'):
    prepare(tmp_path / 'set', other)
  longer = {'inputs': 128, 'targets': 48}
  with pytest.raises(UserError, match=r'set .its task_feature_lengths is .*64'):
    prepare(tmp_path / 'set', task, longer)
  preparation.begin(
    preparation.configure(task, LENGTHS, str(tmp_path / 'half'))
  )
  with pytest.raises(UserError, match='the beginning of another set'):
    prepare(tmp_path / 'half', other)


def test_a_full_disk_leaves_nothing_that_looks_whole(task, tmp_path):
  """A limit on the size of files stands in for a disk that is full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    with pytest.raises(UserError, match=r'Cannot write to.*free some') as error:
      prepare(tmp_path / 'set', task)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='no whole set'):
    prepared_set.load(tmp_path / 'set')
  prepare(tmp_path / 'set', task)
  prepare(tmp_path / 'other', task)
  assert contents(tmp_path / 'set') == contents(tmp_path / 'other')


def test_what_cannot_be_prepared_is_refused(text, tmp_path):
  source = corpora.text_files(text)
  name = tasks.span_corruption(source, vocabularies.byte())
  whole = seqio.TaskRegistry.get(name)

  def changed(name, steps):
    seqio.TaskRegistry.remove(name)
    features, given = whole.output_features, {'preprocessors': steps}
    seqio.TaskRegistry.add(name, source, output_features=features, **given)
    return name

  more = [*whole.preprocessors, lambda dataset: dataset]
  (tmp_path / 'v.txt').write_text('x')
  too_little = tasks.span_corruption(
    corpora.text_files(text, str(tmp_path / 'v.txt')), vocabularies.byte()
  )
  after = 'something else after span corruption'
  for given, lengths, words in (
    (changed('test_plain', []), None, 'no span corruption of t5x_variants'),
    ('nonsense', None, "'nonsense', which is no regist"),
    (name, {'inputs': 64}, 'TASK_FEATURE_LENGTHS is .*must give'),
    (changed('test_more', more), None, after),
    (changed('test_no_eos', whole.preprocessors[:-1]), None, after),
    (too_little, None, "no example in the split 'validation'"),
  ):
    with pytest.raises(UserError, match=words):
      prepare(tmp_path / 'set', given, lengths)
    assert not (tmp_path / 'set/info.json').exists()


def command(*arguments, **options):
  return subprocess.Popen(
    [sys.executable, '-m', 't5x_variants.prepare_data', *arguments],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def run(process):
  """What it has said, once it has ended well."""
  _, text = process.communicate()
  assert process.returncode == 0, text
  return text


def test_the_command_says_what_is_held_out_if_it_is_little(tmp_path):
  lines = [f'Line {i}.' for i in range(99)]
  (tmp_path / 'a.txt').write_text('\n\n'.join(lines))
  text = run(
    command(
      '--gin_file=gin/data/text_files.gin',
      f"--gin.TEXT_FILES='{tmp_path}/a.txt'",
      '--gin.VALIDATION_FRACTION=0.1',
      f'--output={tmp_path}/set',
    )
  )
  info = prepared_set.load(tmp_path / 'set')
  batches = dataset(tmp_path / 'set', 'validation', 4, num_epochs=1).open()
  tokens = sum(int(batch['decoder_loss_weights'].sum()) for batch in batches)
  assert tokens < config.FEW_TARGET_TOKENS
  assert info.target_tokens('validation') == pytest.approx(tokens, rel=0.1)
  (warning,) = [x for x in text.splitlines() if x.startswith('WARNING')]
  split = info.splits['validation']
  for part in (
    f'{split.examples} examples and {split.tokens} tokens',
    f'{info.target_tokens("validation"):.0f} target tokens',
    'VALIDATION_FRACTION',
    'VALIDATION_FILES',
  ):
    assert part in warning
  assert not config.few_target_tokens(config.FEW_TARGET_TOKENS)


def write_text(folder, files, megabytes):
  """Numbers in words, a document a line, files of a megabyte and more."""
  rng = np.random.default_rng(0)
  words = np.array([f'{word:x}' for word in rng.integers(0, 2**30, 4096)])
  lines = [' '.join(words[rng.integers(0, 4096, 250)]) for _ in range(512)]
  lot = ('\n'.join(lines) + '\n').encode()
  folder.mkdir()
  for index in range(files):
    with open(folder / f'{index:03d}.txt', 'wb') as file:
      for part in range(megabytes * 2**20 // files // len(lot)):
        file.write(f'part {index} {part}\n'.encode() + lot)
  return [
    '--gin_file=gin/data/text_files.gin',
    f"--gin.TEXT_FILES='{folder}/*.txt'",
    "--gin.DOCUMENT='line'",
    '--workers=2',
  ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigkill_of_the_real_command_on_two_processes(tmp_path):
  arguments = write_text(tmp_path / 'text', 8, 60)
  begun = time.monotonic()
  run(command(*arguments, f'--output={tmp_path}/whole'))
  seconds = time.monotonic() - begun
  for _ in range(4):
    process = command(*arguments, f'--output={tmp_path}/broken')
    with process:
      try:
        process.wait(random.uniform(0.3, 0.9) * seconds)
      except subprocess.TimeoutExpired:
        process.kill()
    time.sleep(1)  # Its workers end with it.
  run(command(*arguments, f'--output={tmp_path}/broken'))
  assert contents(tmp_path / 'broken') == contents(tmp_path / 'whole')


_READ = """
import resource, sys
from t5x_variants.data import config
data = config.DatasetConfig(None, None, 'train', 64, prepared=sys.argv[1])
batches = data.open()
for _ in range(2000):
  next(batches)
assert 'tensorflow' not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_corpus_larger_than_memory(tmp_path):
  """5 GB prepared and read, either in less than 2 GiB.

  Alone, with about 15 GB of disk:
    bash tools/test.sh -m slow tests/data -k larger_than_memory
  """
  psutil = pytest.importorskip('psutil')
  arguments = write_text(tmp_path / 'text', 40, 5000)
  size = sum(path.stat().st_size for path in (tmp_path / 'text').iterdir())
  assert size > 4.9e9
  process = command(
    *arguments,
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 114}",
    f'--output={tmp_path}/set',
    start_new_session=True,
  )
  peak, begun = 0, time.monotonic()
  while process.poll() is None:
    family = psutil.Process(process.pid)
    family = [family, *family.children(recursive=True)]
    peak = max(peak, sum(_memory(member) for member in family))
    time.sleep(1)
  text = run(process)
  prepared_in = time.monotonic() - begun
  done = subprocess.run(
    [sys.executable, '-c', _READ, f'{tmp_path}/set'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  print(f'prepared in {prepared_in:.0f} s, peak {peak / 2**20:.0f} MiB; read')
  print(f'within {done.stdout.strip()} MiB; {text.splitlines()[-3:]}')
  assert peak < 2 * 2**30 and int(done.stdout) < 2048
  batches = dataset(tmp_path / 'set').open()
  assert next(batches)['decoder_loss_weights'].any()


def _memory(process):
  """Bytes; a page that several processes share is counted once in all."""
  try:
    return process.memory_full_info().pss
  except Exception:  # It has just ended.
    return 0
