"""Prepared data: the same examples as seqio's, on any number of hosts."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import small_run
from hypothesis import strategies as st

from t5x_variants.data import config, pipeline
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.prepared import order as rows
from t5x_variants.data.prepared import reader as prepared
from t5x_variants.data.prepared import writer as preparation
from t5x_variants.data.tasks import noise, span_corruption
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTHS = {'inputs': 64, 'targets': 24}


def prepare(folder, task, lengths=None):
  """Writes a set in this process."""
  work = preparation.configure(task, lengths or LENGTHS, str(folder))
  for shard in preparation.begin(work):
    preparation.write_shard(work, *shard)
  return preparation.finish(work)


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  """62 documents of 1 to 300 bytes."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  found = [
    f'Document {i} ' + ' '.join(map(str, rng.integers(0, 999, length)))
    for i, length in enumerate(rng.integers(0, 80, 60))
  ]
  (folder / 'a.txt').write_text('\n\n'.join([*found, 'x', 'yz']))
  source = corpora.text_files(str(folder / '*.txt'), validation_fraction=0.2)
  return tasks.span_corruption(source, vocabularies.byte())


@pytest.fixture(scope='module')
def folder(task, tmp_path_factory):
  path = tmp_path_factory.mktemp('prepared') / 'set'
  prepare(path, task)
  return path


@pytest.fixture
def copy(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'set'))


def dataset(folder, split='train', batch_size=8, lengths=None, **options):
  return config.DatasetConfig(
    None, lengths, split, batch_size, prepared=str(folder), **options
  )


def examples(batches):
  """(inputs, targets), EOS included, in the order of packing."""
  for batch in batches:
    sides = [
      (batch[f'{side}_tokens'], batch[f'{side.split("_")[0]}_segment_ids'])
      for side in ('encoder_input', 'decoder_target')
    ]
    for row in range(len(sides[0][0])):
      for segment in range(1, sides[0][1][row].max() + 1):
        yield tuple(t[row][ids[row] == segment] for t, ids in sides)


def text(inputs, targets):
  """The chunk: spans put back, and no EOS."""
  spans = np.split(targets[:-1], np.flatnonzero(targets[:-1] >= 259))[1:]
  spans = {span[0]: span[1:] for span in spans}
  whole = [spans.get(token, [token]) for token in inputs[:-1]]
  return (np.concatenate(whole) - 3).astype(np.uint8).tobytes()


def texts(batches):
  return [text(*example) for example in examples(batches)]


def same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], name)


@hypothesis.given(
  st.integers(2, 700),
  st.floats(0.05, 0.6),
  st.floats(1.0, 8.0),
  st.integers(0, 2**64 - 1),
)
def test_a_mask_has_the_counted_noise_and_spans(length, density, mean, stream):
  mask = noise.random_spans_noise_mask(length, stream, density, mean)
  hidden, spans = noise.noise_counts(length, density, mean)
  starts = mask & ~np.concatenate([[False], mask[:-1]])
  assert (mask.size, mask.sum(), starts.sum()) == (length, hidden, spans)
  assert not mask[0] and mask[-1]


@hypothesis.given(st.lists(st.booleans(), min_size=2, max_size=80))
def test_one_mask_one_example_whoever_applies_it(mask):
  mask = np.array([False, *mask, True])
  tokens = np.arange(3, 3 + len(mask), dtype=np.int32)
  theirs = span_corruption.apply_mask(tf.constant(tokens), mask, 500)
  ours = noise.apply_mask(tokens, mask, 500)
  for name, found in zip(('inputs', 'targets'), ours, strict=True):
    np.testing.assert_array_equal(found, theirs[name].numpy())
    assert found.dtype == np.int32


def test_every_composition_is_drawn_as_often():
  # 7 = 3 positive parts in 15 ways.
  streams = noise.draw(1, np.arange(6000)).tolist()
  found = collections.Counter(
    tuple(noise._composition(noise.draw(stream, np.arange(6)), 3).tolist())
    for stream in streams
  )
  assert len(found) == 15
  chi_square = sum((count - 400) ** 2 / 400 for count in found.values())
  assert chi_square < 36.1  # 1 in 1000 for 14 degrees of freedom.


@pytest.mark.parametrize('joined', [1, 3])
def test_chunks_are_those_of_the_seqio_path(joined):
  sizes = [0, 1, 5, 12, 700, 24, 25, 0]
  documents = [np.arange(3, 3 + size, dtype=np.int32) for size in sizes]
  given = tf.data.Dataset.from_generator(
    lambda: ({'targets': document} for document in documents),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  theirs = span_corruption.split_into_chunks(
    span_corruption.join_documents(given, joined), 12
  )
  theirs = [example['targets'] for example in theirs.as_numpy_iterator()]
  ours = list(noise.chunks(documents, 12, joined))
  assert [x.tolist() for x in ours] == [x.tolist() for x in theirs]


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
def test_padding_is_a_batch_without_tokens(folder, pack):
  batches = dataset(folder, pack=pack).open()
  batch, nothing = next(batches), batches.padding()
  assert nothing.keys() == batch.keys()
  for name, value in nothing.items():
    assert value.shape == batch[name].shape and not value.any()
    assert value.dtype == batch[name].dtype


@pytest.mark.parametrize('pack', [True, False])
def test_features_are_those_of_the_seqio_path(folder, task, pack):
  """The same examples through seqio's own converter give the same rows."""
  options = {'num_epochs': 1, 'shuffle': False}
  found = list(examples(dataset(folder, **options).open()))
  given = tf.data.Dataset.from_generator(
    lambda: ({'inputs': i, 'targets': t} for i, t in found),
    output_signature={
      name: tf.TensorSpec([None], tf.int32) for name in LENGTHS
    },
  )
  converter = seqio.EncDecFeatureConverter(pack=pack)
  theirs = converter(given, LENGTHS).batch(8).as_numpy_iterator()
  ours = dataset(folder, pack=pack, **options).open()
  if not pack:
    assert sum(b['decoder_loss_weights'].any(1).sum() for b in ours) == len(
      found
    )
    ours = dataset(folder, pack=pack, **options).open()
  count = 0
  # seqio packs in windows; rows agree until the first one ends.
  for count, (mine, other) in enumerate(zip(ours, theirs, strict=False), 1):
    if count == 4:
      break
    same(mine, other)
  assert count == 4


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

  def __init__(self, config, hosts, last=None):
    self.config, self.hosts, self.last = config, hosts, last
    self.batch_size, self.vocab_size = config.batch_size, 359
    self.task_feature_lengths = config.task_feature_lengths

  def open(self, shard_index=0, num_shards=1):
    self.shares = [
      self.config.open(index, self.hosts) for index in range(self.hosts)
    ]
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
  """The trainer's losses: 4 hosts, killed, 2, killed, 1; against one alone."""
  monkeypatch.setattr(small_run, 'VOCAB', 384)
  options = {
    'eval_dataset': None,
    'periods': small_run.periods(log=1, eval=100, checkpoint=4),
  }
  data = dataset(folder)
  whole = Hosts(data, 1)
  expected = small_run.run(tmp_path / 'a', 24, whole, **options)
  order = []
  for hosts, last in ((4, 10), (2, 9), (1, None)):
    reading = Hosts(data, hosts, last)
    try:
      found = small_run.run(tmp_path / 'b', 24, reading, **options)
    except KeyboardInterrupt:
      # Saved at steps 8 and 16.
      kept = len(reading.seen) // 4 * 4 if hosts == 4 else 8
      order += reading.seen[:kept]
    else:
      order += reading.seen
  assert len(order) == len(whole.seen) == 24
  for one, other in zip(order, whole.seen, strict=True):
    same(one, other)
  assert found.keys() == expected.keys()
  for step, values in expected.items():
    np.testing.assert_allclose(found[step], values, rtol=1e-5, err_msg=step)


def test_a_position_is_a_number_and_what_it_belongs_to(folder, tmp_path):
  batches = dataset(folder).open()
  next(batches)
  batches.save(tmp_path)
  saved = json.loads((tmp_path / 'position.json').read_text())
  assert 8 <= saved['example'] < 40
  assert set(saved) == {'example', 'built_with', 'crc32'}
  for options, words in (
    ({'seed': 1}, 'seed=0 and this run has 1'),
    ({'batch_size': 4}, 'batch_size=8 and this run has 4'),
    ({'pack': False}, 'pack=True'),
  ):
    with pytest.raises(UserError, match=words):
      dataset(folder, **options).open().restore(tmp_path)
  finished = dataset(folder, num_epochs=1).open()
  count = len(list(finished))
  finished.save(tmp_path / 'end')
  again = dataset(folder, num_epochs=1).open()
  again.restore(tmp_path / 'end')
  assert count and not list(again)


def test_a_position_of_the_other_pipeline_is_refused(folder, task, tmp_path):
  theirs = pipeline.Batches(task, LENGTHS, 'train', 8, shuffle=True, seed=0)
  ours = dataset(folder).open()
  theirs.save(tmp_path / 'theirs')
  ours.save(tmp_path / 'ours')
  with pytest.raises(UserError, match='is that of a seqio task'):
    ours.restore(tmp_path / 'theirs')
  with pytest.raises(UserError, match='is that of prepared data'):
    theirs.restore(tmp_path / 'ours')


def test_a_run_on_other_data_is_refused_and_keeps_its_checkpoints(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(small_run, 'VOCAB', 384)
  options = {'eval_dataset': None}
  small_run.run(tmp_path, 2, dataset(folder), **options)
  with pytest.raises(UserError, match='saved with seed=0'):
    small_run.run(tmp_path, 4, dataset(folder, seed=1), **options)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['2']


def change(copy, **fields):
  path = copy / 'info.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(copy):
  path = next(copy.glob('train*.array_record'))
  os.truncate(path, path.stat().st_size - 1000)


def flip(copy):
  """Damage of the same size, in the first record."""
  path = next(copy.glob('train*.array_record'))
  data = bytearray(path.read_bytes())
  data[200:400] = bytes(200)
  path.write_bytes(data)


def other_vocabulary(copy):
  info = prepared_set.load(copy)
  vocabulary = dataclasses.replace(info.vocabulary, extra_ids=50)
  info = dataclasses.replace(info, vocabulary=vocabulary)
  (copy / 'info.json').write_text(info.to_json())


@pytest.mark.parametrize(
  'damage, words',
  [
    (cut, 'train-00000.* is damaged .it has .* bytes instead of'),
    (flip, 'train-00000.* is damaged'),
    (other_vocabulary, 'is not the vocabulary'),
    (functools.partial(change, format=7), 'has format 7 and .* reads 1 and 2'),
    (lambda copy: (copy / 'info.json').write_text('{'), 'is damaged or was'),
    (lambda copy: (copy / 'info.json').write_text('[]'), 'is damaged or was'),
    (lambda copy: (copy / 'info.json').unlink(), 'no whole set .*begun'),
    (lambda copy: (copy / 'train.lengths').unlink(), 'it has 0 bytes'),
    (shutil.rmtree, 'holds no whole set of prepared data'),
  ],
)
def test_damage_is_one_sentence(copy, damage, words):
  damage(copy)
  with pytest.raises(UserError, match=words) as error:
    list(dataset(copy, num_epochs=1).open())
  assert '\n' not in str(error.value)


def test_what_does_not_suit_is_refused(folder):
  def opened(task=None, lengths=None, split='train', **shares):
    data = config.DatasetConfig(task, lengths, split, 8, prepared=str(folder))
    return data.open(**shares)

  with pytest.raises(UserError, match="MIXTURE_OR_TASK_NAME is 'mine'"):
    opened('mine')
  with pytest.raises(UserError, match='take these, longer ones'):
    opened(lengths={'inputs': 32, 'targets': 24})
  with pytest.raises(UserError, match="split is 'test'"):
    opened(split='test')
  with pytest.raises(UserError, match='multiple of the 3 hosts'):
    opened(num_shards=3)
  with pytest.raises(UserError, match='mount the bucket'):
    prepared_set.load('gs://bucket/set')
  longer = opened(lengths={'inputs': 128, 'targets': 48})
  assert next(longer)['encoder_segment_ids'].max() > 1


def test_a_sentence_piece_model_goes_with_the_set(task, tmp_path):
  import sentencepiece

  source = seqio.get_mixture_or_task(task).source
  sentencepiece.SentencePieceTrainer.train(
    input=source.list_shards('train')[0],
    model_prefix=str(tmp_path / 'm'),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
  )
  vocabulary = vocabularies.sentence_piece(str(tmp_path / 'm.model'))
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


_WITHOUT_TENSORFLOW = """
import runpy, sys
sys.argv[0] = 't5x_variants.train'
try:
  runpy.run_module('t5x_variants.train', run_name='__main__', alter_sys=True)
except SystemExit as error:
  assert not error.code, error
names = 'tensorflow', 'seqio', 'tensorflow_datasets', 'tensorflow_text'
print(sorted(set(names) & set(sys.modules)))
"""


def test_a_training_process_never_imports_tensorflow(tmp_path):
  """Prepared on first use, trained, evaluated, saved, restored, logged."""
  arguments = [
    *(
      f'--gin_file=gin/{file}.gin'
      for file in (
        'models/tiny',
        'variants/geglu',
        'data/prepared',
        'runs/pretrain',
      )
    ),
    f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
    '--gin.BATCH_SIZE=4',
    '--gin.EVAL_STEPS=1',
    '--gin.network.T5Config.emb_dim=16',
    '--gin.network.T5Config.num_encoder_layers=1',
    '--gin.network.T5Config.num_decoder_layers=1',
  ]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    'PYTHONPATH': str(ROOT),
  }
  for steps in (2, 3):
    done = subprocess.run(
      [
        sys.executable,
        '-c',
        _WITHOUT_TENSORFLOW,
        *arguments,
        f'--gin.TRAIN_STEPS={steps}',
      ],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'
  assert sorted(small_run.losses(tmp_path / 'run', 'eval')) == [0, 2, 3]
  made = [path.name for path in (tmp_path / 'cache/t5x_variants').iterdir()]
  # The corpus and the set, and nothing half made.
  assert sum('prepared' in name for name in made) == 1 and len(made) == 2


def test_prepared_is_what_the_config_says(folder, task):
  assert isinstance(dataset(folder).open(), prepared.Batches)
  data = config.DatasetConfig(task, LENGTHS, 'train', 8)
  assert isinstance(data.open(), pipeline.Batches)
