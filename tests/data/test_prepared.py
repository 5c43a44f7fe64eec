"""Prepared data: the same examples as seqio's, on any number of hosts."""

import collections
import itertools
import os
import pathlib
import subprocess
import sys

import data_cases
import hypothesis
import numpy as np
import pytest
import quick_jit
import small_run
from data_cases import (
  LENGTHS,
  alike,
  dataset,
  examples,
  prepare,
  same,
  text,
  texts,
)
from hypothesis import strategies as st

from t5x_variants.data import config, pipeline
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.prepared import order as rows
from t5x_variants.data.prepared import reader as prepared
from t5x_variants.data.tasks import noise
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, embedded, vocabularies
from t5x_variants.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
quick = quick_jit.quick
task, folder = data_cases.task, data_cases.folder


@hypothesis.given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_holds_everything_once(size, stream):
  found = rows.permuted(np.arange(size), size, stream)
  assert sorted(found) == list(range(size))
  part = rows.permuted(np.arange(size)[size // 2 :], size, stream)
  np.testing.assert_array_equal(part, found[size // 2 :])


def test_an_order_is_far_from_the_files_order():
  found = rows.permuted(np.arange(100_000), 100_000, 5)
  assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02
  assert (np.abs(np.diff(found)) == 1).sum() < 20


def test_an_epoch_holds_every_chunk_once_and_no_two_are_alike(folder, task):
  source = seqio.get_mixture_or_task(task).source.get_dataset('train', False)
  length = noise.chunk_length(64, 24)
  expected = [
    example['text'][start : start + length]
    for example in source.as_numpy_iterator()
    for start in range(0, len(example['text']), length)
  ]
  expected = collections.Counter(e for e in expected if len(e) > 1)
  once = texts(dataset(folder, num_epochs=1).open())
  twice = list(examples(dataset(folder, num_epochs=2).open()))
  assert collections.Counter(once) == expected
  both = [text(*example) for example in twice]
  half = len(both) // 2
  assert both[:half] == once and both[half:] != once
  assert collections.Counter(both[half:]) == expected
  other = texts(dataset(folder, num_epochs=1, seed=1).open())
  assert other != once and collections.Counter(other) == expected
  # Each epoch hides other spans of the same text.
  inputs = collections.defaultdict(set)
  for example in twice:
    inputs[text(*example)].add(example[0].tobytes())
  long = [found for chunk, found in inputs.items() if len(chunk) > 40]
  assert long and sum(len(found) > 1 for found in long) >= 0.98 * len(long)


@pytest.mark.parametrize('pack', [True, False])
def test_features_are_those_of_the_seqio_path(folder, pack):
  """The same examples through seqio's own converter give the same rows."""
  options = {'num_epochs': 1, 'shuffle': False}
  found = list(examples(dataset(folder, **options).open()))
  given = tf.data.Dataset.from_generator(
    lambda: ({'inputs': i, 'targets': t} for i, t in found),
    output_signature={n: tf.TensorSpec([None], tf.int32) for n in LENGTHS},
  )
  converter = seqio.EncDecFeatureConverter(pack=pack)
  theirs = list(converter(given, LENGTHS).batch(8).as_numpy_iterator())
  ours = list(dataset(folder, pack=pack, **options).open())
  if not pack:
    used = sum(b['decoder_loss_weights'].any(1).sum() for b in ours)
    assert used == len(found)
  # seqio packs in windows; rows agree until the first one ends.
  alike(ours[:3], theirs[:3])


def ones_against_the_law(spans):
  """Spans of one token, in standard deviations from how many there should be.

  Of the compositions of N into K parts, drawn uniformly, a part is 1 with
  probability (K - 1) / (N - 1).
  """
  surplus = variance = 0.0
  for lengths in spans:
    count, hidden = len(lengths), lengths.sum()
    if 1 < count < hidden:
      share = (count - 1) / (hidden - 1)
      surplus += (lengths == 1).sum() - count * share
      variance += count * share * (1 - share)
  return surplus / variance**0.5


def test_statistics_are_those_of_the_seqio_path(tmp_path):
  """10,000 real examples: noise, spans, and how full the rows are."""
  lengths = {'inputs': 128, 'targets': 34}
  name = tasks.span_corruption(corpora.embedded(), vocabularies.byte())
  info = prepare(tmp_path / 'set', name, lengths)
  assert info.splits['train'].examples > 10_000
  found = []
  for batches in (
    dataset(tmp_path / 'set', batch_size=64).open(),
    pipeline.Batches(name, lengths, 'train', 64, shuffle=True, seed=0),
  ):
    taken = [next(batches) for _ in range(170)]
    drawn = list(examples(taken))
    assert len(drawn) > 10_000
    spans = [  # Hidden spans of the examples, by their number of tokens.
      np.diff(np.append(np.flatnonzero(targets >= 259), len(targets) - 1)) - 1
      for _, targets in drawn
    ]
    assert abs(ones_against_the_law(spans)) < 4
    spans = np.concatenate(spans)
    found.append(
      {
        'inputs': np.mean([len(inputs) for inputs, _ in drawn]),
        'targets': np.mean([len(targets) for _, targets in drawn]),
        'span': spans.mean(),
        'spread of spans': spans.std(),
        'filled': np.mean([b['encoder_input_tokens'] > 0 for b in taken]),
        'to predict': np.mean([b['decoder_loss_weights'] for b in taken]),
        'in a row': len(drawn) / (170 * 64),
      }
    )
  ours, theirs = found
  for name, value in ours.items():
    assert value == pytest.approx(theirs[name], rel=0.03), name


class Hosts:
  """Stands in for a DatasetConfig: as many hosts, their rows put together."""

  vocab_size = 359

  def __init__(self, config, hosts, last=None):
    self.config, self.hosts, self.last = config, hosts, last
    self.batch_size = config.batch_size
    self.task_feature_lengths = config.task_feature_lengths

  def open(self, shard_index=0, num_shards=1):
    self.shares = [self.config.open(i, self.hosts) for i in range(self.hosts)]
    self.seen = []
    return self

  def __iter__(self):
    return self

  def __next__(self):
    if len(self.seen) == self.last:
      raise KeyboardInterrupt  # Killed.
    parts = [next(share) for share in self.shares]
    names = parts[0].keys()
    batch = {n: np.concatenate([part[n] for part in parts]) for n in names}
    self.seen.append(batch)
    return batch

  def save(self, directory):
    for share in self.shares:
      share.save(directory)

  def restore(self, directory):
    for share in self.shares:
      share.restore(directory)


@pytest.mark.parametrize('pack', [True, False])
def test_four_hosts_then_two_then_one(folder, tmp_path, pack):
  """The same global batches, over an epoch's end, whoever reads them."""
  data = dataset(folder, pack=pack)
  alone = data.open()
  expected = [next(alone) for _ in range(30)]
  count = len(list(dataset(folder, pack=pack, num_epochs=1).open()))
  assert 10 < count < 25
  begun = 0
  for hosts, stop in ((4, 11), (2, 21), (1, 30)):
    reading = Hosts(data, hosts).open()
    if begun:
      reading.restore(tmp_path)
    for step in range(begun, stop):
      same(next(reading), expected[step])
    begun = stop
    reading.save(tmp_path)


def test_a_run_killed_and_continued_on_fewer_hosts(
  folder, tmp_path, monkeypatch
):
  """The trainer's losses: 4 hosts, killed, then 2; against one alone."""
  monkeypatch.setattr(small_run, 'VOCAB', 384)
  options = {
    'eval_dataset': None,
    'periods': small_run.periods(log=1, eval=100, checkpoint=4),
  }
  whole = Hosts(dataset(folder), 1)
  expected = small_run.run(tmp_path / 'a', 16, whole, **options)
  four, two = Hosts(dataset(folder), 4, last=10), Hosts(dataset(folder), 2)
  with pytest.raises(KeyboardInterrupt):
    small_run.run(tmp_path / 'b', 16, four, **options)
  found = small_run.run(tmp_path / 'b', 16, two, **options)
  assert len(whole.seen) == 16
  # Saved at step 8.
  alike(four.seen[:8] + two.seen, whole.seen)
  assert found.keys() == expected.keys()
  for step, values in expected.items():
    np.testing.assert_allclose(found[step], values, rtol=1e-5, err_msg=step)
  # Other data is refused, and what is saved stays.
  kept = sorted(path.name for path in (tmp_path / 'b/checkpoints').iterdir())
  with pytest.raises(UserError, match='saved with seed=0'):
    small_run.run(tmp_path / 'b', 20, dataset(folder, seed=1), **options)
  found = (tmp_path / 'b/checkpoints').iterdir()
  assert sorted(path.name for path in found) == kept


def test_what_does_not_suit_is_refused(folder):
  def opened(task=None, lengths=None, split='train', **shares):
    data = config.DatasetConfig(task, lengths, split, 8, prepared=str(folder))
    return data.open(**shares)

  for options, words in (
    ({'task': 'mine'}, "MIXTURE_OR_TASK_NAME is 'mine'"),
    ({'lengths': {'inputs': 32, 'targets': 24}}, 'take these, longer ones'),
    ({'split': 'test'}, "split is 'test'"),
    ({'num_shards': 3}, 'multiple of the 3 hosts'),
  ):
    with pytest.raises(UserError, match=words):
      opened(**options)
  with pytest.raises(UserError, match='mount the bucket'):
    prepared_set.load('gs://bucket/set')
  longer = opened(lengths={'inputs': 128, 'targets': 48})
  assert next(longer)['encoder_segment_ids'].max() > 1


def test_a_sentence_piece_model_goes_with_the_set(task, tmp_path):
  source = seqio.get_mixture_or_task(task).source
  model = data_cases.sentence_piece(
    source.list_shards('train')[0], tmp_path / 'm'
  )
  vocabulary = vocabularies.sentence_piece(model)
  name = tasks.span_corruption(source, vocabulary, documents_joined=8)
  info = prepare(tmp_path / 'set', name)
  batches = dataset(tmp_path / 'set').open()
  assert batches.vocab_size == info.vocabulary.vocab_size
  assert batches.vocab_size == vocabulary.vocab_size
  assert next(batches)['encoder_input_tokens'].max() < vocabulary.vocab_size
  with open(tmp_path / 'set/vocabulary.model', 'ab') as file:
    file.write(b'x')
  with pytest.raises(UserError, match=r'vocabulary.model is not the vocab'):
    dataset(tmp_path / 'set').open()


# Two commands, one after the other, each a fork of what has been imported.
_WITHOUT_TENSORFLOW = """
import os, runpy, sys
import t5x_variants.training.trainer
sys.argv[0] = 't5x_variants.train'
for steps in (2, 3):
  child = os.fork()
  if child:
    assert os.waitpid(child, 0)[1] == 0
    continue
  sys.argv.append(f'--gin.TRAIN_STEPS={steps}')
  try:
    runpy.run_module('t5x_variants.train', run_name='__main__', alter_sys=True)
  except SystemExit as error:
    assert not error.code, error
  names = 'tensorflow', 'seqio', 'tensorflow_datasets', 'tensorflow_text'
  print(sorted(set(names) & set(sys.modules)), flush=True)
  os._exit(0)
"""


def test_a_training_process_never_imports_tensorflow(tmp_path):
  """Prepared on first use, trained, evaluated, saved, restored, logged."""
  whole = pathlib.Path(embedded.cached_file())
  cache = tmp_path / 'cache/t5x_variants'
  cache.mkdir(parents=True)
  with whole.open(encoding='utf-8') as lines:
    part = ''.join(itertools.islice(lines, 300))
  (cache / whole.name).write_text(part, encoding='utf-8')
  files = 'models/tiny', 'variants/geglu', 'data/prepared', 'runs/pretrain'
  done = subprocess.run(
    [
      *(sys.executable, '-c', _WITHOUT_TENSORFLOW),
      *(f'--gin_file=gin/{file}.gin' for file in files),
      f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
      '--gin.BATCH_SIZE=4',
      '--gin.EVAL_STEPS=1',
      '--gin.network.T5Config.emb_dim=16',
      '--gin.network.T5Config.num_encoder_layers=1',
      '--gin.network.T5Config.num_decoder_layers=1',
    ],
    cwd=ROOT,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
      'XDG_CACHE_HOME': str(tmp_path / 'cache'),
      'PYTHONPATH': str(ROOT),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['[]', '[]']
  assert sorted(small_run.losses(tmp_path / 'run', 'eval')) == [0, 2, 3]
  made = [path.name for path in cache.iterdir()]
  # The corpus and the set, and nothing half made.
  assert sum('prepared' in name for name in made) == 1 and len(made) == 2


def test_prepared_is_what_the_config_says(folder, task):
  assert isinstance(dataset(folder).open(), prepared.Batches)
  data = config.DatasetConfig(task, LENGTHS, 'train', 8)
  assert isinstance(data.open(), pipeline.Batches)
