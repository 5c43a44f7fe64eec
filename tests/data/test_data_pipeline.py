"""Batches: the right features, every example once, exact positions."""

import collections
import json
import os
import time

import numpy as np
import pytest
from data_cases import alike, examples, sentence_piece, texts

from t5x_variants.data import packing, pipeline
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.tasks import noise
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, documents, sources, vocabularies
from t5x_variants.errors import UserError

LENGTHS = {'inputs': 256, 'targets': 64}
PACKED = {
  'encoder_input_tokens': 256,
  'encoder_segment_ids': 256,
  'encoder_positions': 256,
  'decoder_target_tokens': 64,
  'decoder_input_tokens': 64,
  'decoder_loss_weights': 64,
  'decoder_segment_ids': 64,
  'decoder_positions': 64,
}


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """160 documents of 1 to 2000 bytes in 4 files; names their glob."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for shard in range(4):
    found = []
    for i in range(40):
      words = rng.integers(0, 10**6, rng.integers(0, 300))
      found.append(f'Document {shard} {i} ' + ' '.join(map(str, words)))
    (folder / f'{shard}.txt').write_text('\n\n'.join(found))
  return str(folder / '*.txt')


@pytest.fixture(scope='module')
def small(text):
  """A task whose corpus is held in memory."""
  source = corpora.text_files(text, validation_fraction=0.1)
  return tasks.span_corruption(source, vocabularies.byte())


@pytest.fixture(params=['in memory', 'streamed'])
def task(request, text, small, monkeypatch):
  """That task, and one that streams the same files in small blocks."""
  if request.param == 'in memory':
    return small
  monkeypatch.setattr(sources, 'IN_MEMORY', 0)
  monkeypatch.setattr(documents, 'BLOCK', 4000)
  source = corpora.text_files(text, validation_fraction=0.1)
  seqio.TaskRegistry.remove('test_streamed')
  return tasks.span_corruption(source, vocabularies.byte(), 'test_streamed')


def batches(task, split='train', batch_size=4, **options):
  options = {'shuffle': True, 'seed': 0, **options}
  return pipeline.Batches(task, LENGTHS, split, batch_size, **options)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def expected_chunks(task, split):
  """What an epoch must hold, by Python alone, and how often."""
  source = seqio.get_mixture_or_task(task).source.get_dataset(split, False)
  return collections.Counter(
    example['text'][start : start + 284]
    for example in source.as_numpy_iterator()
    for start in range(0, len(example['text']), 284)
    if len(example['text']) - start >= noise.MIN_CHUNK
  )


@pytest.mark.parametrize('pack', [True, False])
def test_features_and_types(small, pack):
  iterator = batches(small, pack=pack)
  assert iterator.vocab_size == 359
  assert iterator.vocabulary == vocabularies.byte()
  batch = next(iterator)
  wanted = {
    name: length
    for name, length in PACKED.items()
    if pack or not name.endswith(('_ids', '_positions'))
  }
  assert {name: value.shape[1] for name, value in batch.items()} == wanted
  for value in batch.values():
    assert value.dtype == np.int32 and value.shape[0] == 4
  targets = batch['decoder_target_tokens']
  weights = batch['decoder_loss_weights']
  np.testing.assert_array_equal(weights, targets > 0)
  # Shifted right by one, from 0 anew in each packed example.
  begins = batch['decoder_positions'] == 0 if pack else np.arange(64) == 0
  shifted = np.where(begins, 0, np.roll(targets, 1, 1))
  inputs = batch['decoder_input_tokens']
  if pack:
    shifted = shifted * (batch['decoder_segment_ids'] > 0)
    np.testing.assert_array_equal(inputs, shifted)
  else:
    np.testing.assert_array_equal(inputs[weights > 0], shifted[weights > 0])


def test_shards_are_disjoint_and_complete(task):
  found = []
  for index in range(2):
    shard = {'shard_index': index, 'num_shards': 2}
    found += list(batches(task, num_epochs=1, **shard))
  assert all(len(b['encoder_positions']) == 2 for b in found)
  assert collections.Counter(texts(found)) == expected_chunks(task, 'train')


def test_order_and_noise_follow_from_the_seed(small):
  first, second, other = (take(batches(small, seed=s), 6) for s in (3, 3, 4))
  alike(first, second)
  for one, another in zip(first, other, strict=True):
    assert any((one[name] != another[name]).any() for name in one)


def test_every_epoch_has_its_own_order_and_noise(task):
  wanted = expected_chunks(task, 'train')
  twice = list(batches(task, num_epochs=2, shuffle=False))
  found = texts(twice)
  assert collections.Counter(found) == wanted + wanted
  assert found[: len(found) // 2] == found[len(found) // 2 :]
  noised = {inputs.tobytes() for inputs, _ in examples(twice)}
  # Two-byte chunks can be hidden in one way only.
  assert len(noised) >= sum(len(chunk) > 40 for chunk in found)
  shuffled = texts(batches(task, num_epochs=2))
  half = len(shuffled) // 2
  assert shuffled[:half] != shuffled[half:]
  assert collections.Counter(shuffled) == wanted + wanted


@pytest.mark.parametrize(
  'task, pack, before',
  [
    ('in memory', True, 180),
    ('streamed', True, 180),
    ('streamed', False, 3),
  ],
  indirect=['task'],
)
def test_a_restored_position_continues_exactly(task, tmp_path, pack, before):
  iterator = batches(task, pack=pack)
  take(iterator, before)  # 180 batches reach into the second epoch.
  iterator.save(tmp_path / 'position')
  expected = take(iterator, 50)
  restored = batches(task, pack=pack)
  take(restored, 2)  # Whatever was read before restoring is forgotten.
  restored.restore(tmp_path / 'position')
  alike(take(restored, 50), expected)
  size = sum(f.stat().st_size for f in (tmp_path / 'position').iterdir())
  assert size < 10e6


def test_a_finished_position_is_finished_when_restored(small, tmp_path):
  iterator = batches(small, num_epochs=1)
  count = len(list(iterator))
  assert 5 < count < 180
  iterator.save(tmp_path)
  again = batches(small, num_epochs=1)
  again.restore(tmp_path)
  assert not list(again)
  # Nor is it that of another pipeline.
  with pytest.raises(UserError, match='batch_size=4 and this run has 8'):
    batches(small, batch_size=8, num_epochs=1).restore(tmp_path)
  with pytest.raises(UserError, match='seed=0 and this run has 1'):
    batches(small, seed=1, num_epochs=1).restore(tmp_path)


def test_positions_of_two_shards_lie_side_by_side(small, tmp_path):
  shards = [batches(small, shard_index=i, num_shards=2) for i in range(2)]
  for shard in shards:
    next(shard)
    shard.save(tmp_path)
  expected = [take(shard, 3) for shard in shards]
  for index in range(2):
    shard = batches(small, shard_index=index, num_shards=2)
    shard.restore(tmp_path)
    alike(take(shard, 3), expected[index])
  with pytest.raises(UserError, match='as many hosts'):
    batches(small).restore(tmp_path)


def test_padding_fills_the_last_batch_and_a_whole_one(task):
  """And an epoch holds every chunk once."""
  iterator = batches(task, 'validation', 256, num_epochs=1, shuffle=False)
  (batch,) = iterator
  wanted = expected_chunks(task, 'validation')
  assert collections.Counter(texts([batch])) == wanted
  rows = batch['decoder_loss_weights'].any(1)
  assert 20 < rows.sum() < 256
  for value in batch.values():
    assert not value[~rows].any()
  nothing = iterator.padding()
  assert nothing.keys() == batch.keys()
  for name, value in nothing.items():
    assert value.shape == batch[name].shape and not value.any()
    assert value.dtype == np.int32


def test_packing_agrees_with_seqios():
  rng = np.random.default_rng(1)
  found = [
    {
      'inputs': rng.integers(1, 99, rng.integers(1, 30), np.int32),
      'targets': rng.integers(1, 99, rng.integers(1, 12), np.int32),
    }
    for _ in range(40)
  ]
  spec = {name: tf.TensorSpec([None], tf.int32) for name in LENGTHS}
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(found), output_signature=spec
  )
  ours, theirs = (
    list(
      converter(pack=True)(
        dataset, {'inputs': 50, 'targets': 20}
      ).as_numpy_iterator()
    )
    for converter in (
      packing.EncDecFeatureConverter,
      seqio.EncDecFeatureConverter,
    )
  )
  alike(ours, theirs)
  assert len(ours) > 10


def test_stock_seqio_reads_the_task_as_t5x_does(small):
  dataset = seqio.get_dataset(
    small,
    LENGTHS,
    seqio.EncDecFeatureConverter(pack=True),
    dataset_split='train',
    use_cached=True,  # t5x's default; there is no cache, and none is needed.
    shuffle=True,
    num_epochs=1,
    seed=0,
    batch_size=4,
  )
  found = {name: spec.shape[1] for name, spec in dataset.element_spec.items()}
  assert found == PACKED
  assert next(dataset.as_numpy_iterator())['decoder_loss_weights'].any()


def test_quick_and_small():
  name = tasks.span_corruption(corpora.embedded(), vocabularies.byte())
  iterator = batches(name, batch_size=16)
  take(iterator, 5)
  start = time.process_time()
  take(iterator, 50)
  # About 0.006 on an idle machine.
  assert (time.process_time() - start) / 50 < 0.03


def test_slips_are_refused(small):
  for arguments, options, words in (
    (('nonsense',), {}, "is 'nonsense', which is not registered"),
    ((small, 'test'), {}, "split is 'test'"),
    ((small,), {'num_shards': 3}, 'BATCH_SIZE is 4.*of the 3 hosts'),
    (
      (small,),
      {'num_shards': 2, 'shard_index': 2},
      'shard is 2; .* from 0 to 1',
    ),
  ):
    with pytest.raises(UserError, match=words):
      batches(*arguments, **options)
  with pytest.raises(UserError, match='no data position'):
    batches(small).restore('/no/such/folder')


def test_a_share_without_documents_is_refused(tmp_path):
  (tmp_path / 'a.txt').write_text('One.\n\nTwo.')
  (tmp_path / 'v.txt').write_text('x')
  source = corpora.text_files(
    str(tmp_path / 'a.txt'), str(tmp_path / 'v.txt'), document='line'
  )
  name = tasks.span_corruption(source, vocabularies.byte())
  with pytest.raises(UserError, match='has no example'):
    next(batches(name, num_shards=4, shard_index=3))
  with pytest.raises(UserError, match='has no example'):
    next(batches(name, 'validation', num_epochs=1))


def test_a_task_is_registered_once(text):
  def make(**options):
    source = corpora.text_files(text, validation_fraction=0.1)
    return tasks.span_corruption(source, vocabularies.byte(), **options)

  name = make()
  assert name.startswith('span_corruption_text_files_') and make() == name
  assert make(noise_density=0.5) != name
  assert seqio.get_mixture_or_task(name).output_features['inputs'].add_eos
  assert make(name='test_mine') == make(name='test_mine') == 'test_mine'
  with pytest.raises(UserError, match="'test_mine' exists"):
    make(name='test_mine', noise_density=0.5)
  with pytest.raises(UserError, match='documents_joined is 0'):
    make(documents_joined=0)


def test_sentence_piece_resumes_and_joined_documents_fill_rows(text, tmp_path):
  source = corpora.text_files(text, validation_fraction=0.1)
  first = os.path.join(os.path.dirname(text), '0.txt')
  model = sentence_piece(first, tmp_path / 'model')
  vocabulary = vocabularies.sentence_piece(model)
  name = tasks.span_corruption(source, vocabulary, documents_joined=32)
  iterator = batches(name)
  found = take(iterator, 3)
  filled = np.mean([batch['encoder_input_tokens'] > 0 for batch in found])
  assert filled > 0.95
  iterator.save(tmp_path / 'position')
  expected = take(iterator, 3)
  restored = batches(name)
  restored.restore(tmp_path / 'position')
  alike(take(restored, 3), expected)


def test_pairs_become_rows_with_prefix_eos_and_a_cut(tmp_path):
  pairs = {'abc': 'd', '': 'efghijkl', 'lmnopqrstuvwxyz': '<extra_id_0>'}
  lines = [json.dumps({'inputs': a, 'targets': b}) for a, b in pairs.items()]
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'held_out.jsonl').write_text(lines[0])
  source = corpora.pairs(
    str(tmp_path / 'pairs.jsonl'), str(tmp_path / 'held_out.jsonl')
  )
  name = tasks.text_to_text(source, vocabularies.byte(), prefix='p: ')
  lengths = {'inputs': 12, 'targets': 6}
  options = {'shuffle': False, 'seed': 0, 'pack': False, 'num_epochs': 1}
  (batch,) = pipeline.Batches(name, lengths, 'train', 3, **options)

  def row(text, length):
    ids = [*(byte + 3 for byte in text.encode()[: length - 1]), 1]
    return [*ids, *([0] * (length - len(ids)))]

  np.testing.assert_array_equal(
    batch['encoder_input_tokens'], [row('p: ' + a, 12) for a in pairs]
  )
  np.testing.assert_array_equal(
    batch['decoder_target_tokens'], [row(b, 6) for b in pairs.values()]
  )
  assert name == tasks.text_to_text(source, vocabularies.byte(), prefix='p: ')
  assert name != tasks.text_to_text(source, vocabularies.byte())
