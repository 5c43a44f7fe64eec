"""Batches: the right features, every example once, exact positions."""

import collections
import json
import os

import numpy as np
import pytest

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
  """300 documents of 1 to 2000 bytes in 4 files; names their glob."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for shard in range(4):
    found = []
    for i in range(75):
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


def same(some, others):
  return len(some) == len(others) and all(
    one.keys() == other.keys()
    and all(np.array_equal(one[name], other[name]) for name in one)
    for one, other in zip(some, others, strict=True)
  )


def examples(found):
  """The (inputs, targets) packed into batches, as bytes, in order."""
  for batch in found:
    for row in range(len(batch['encoder_input_tokens'])):
      segments = batch['encoder_segment_ids'][row]
      for segment in range(1, segments.max() + 1):
        yield tuple(
          batch[f'{side}_tokens'][row][
            batch[f'{side.split("_")[0]}_segment_ids'][row] == segment
          ].tobytes()
          for side in ('encoder_input', 'decoder_target')
        )


def chunks(found):
  """The text of each example: spans put back, and no EOS."""
  for inputs, targets in examples(found):
    inputs = np.frombuffer(inputs, np.int32)[:-1]
    targets = np.frombuffer(targets, np.int32)[:-1]
    spans = np.split(targets, np.flatnonzero(targets >= 259))[1:]
    spans = {span[0]: span[1:] for span in spans}
    whole = [spans.get(token, [token]) for token in inputs]
    yield (np.concatenate(whole) - 3).astype(np.uint8).tobytes()


def expected_chunks(task, split):
  """What an epoch must hold, by Python alone."""
  source = seqio.get_mixture_or_task(task).source.get_dataset(split, False)
  for example in source.as_numpy_iterator():
    document = example['text']
    for start in range(0, len(document), 284):
      if len(document) - start >= noise.MIN_CHUNK:
        yield document[start : start + 284]


@pytest.mark.parametrize('pack', [True, False])
def test_features_and_types(small, pack):
  batch = next(batches(small, pack=pack))
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
  if pack:
    shifted = shifted * (batch['decoder_segment_ids'] > 0)
    np.testing.assert_array_equal(batch['decoder_input_tokens'], shifted)
  else:
    kept = weights > 0
    inputs = batch['decoder_input_tokens']
    np.testing.assert_array_equal(inputs[kept], shifted[kept])


@pytest.mark.parametrize(
  'split, shuffle', [('train', True), ('validation', False)]
)
def test_an_epoch_holds_every_chunk_once(task, split, shuffle):
  found = list(batches(task, split, num_epochs=1, shuffle=shuffle))
  assert all(b['encoder_input_tokens'].shape == (4, 256) for b in found)
  wanted = collections.Counter(expected_chunks(task, split))
  assert collections.Counter(chunks(found)) == wanted


@pytest.mark.parametrize('num_shards', [2])
def test_shards_are_disjoint_and_complete(task, num_shards):
  found = []
  for index in range(num_shards):
    shard = {'shard_index': index, 'num_shards': num_shards}
    found += list(batches(task, num_epochs=1, **shard))
  assert all(len(b['encoder_positions']) == 4 // num_shards for b in found)
  wanted = collections.Counter(expected_chunks(task, 'train'))
  assert collections.Counter(chunks(found)) == wanted


def test_order_and_noise_follow_from_the_seed(small):
  first, second, other = (take(batches(small, seed=s), 6) for s in (3, 3, 4))
  assert same(first, second)
  assert not any(same([a], [b]) for a, b in zip(first, other, strict=True))


def test_every_epoch_has_its_own_order_and_noise(task):
  wanted = collections.Counter(expected_chunks(task, 'train'))
  twice = list(batches(task, num_epochs=2, shuffle=False))
  assert collections.Counter(chunks(twice)) == wanted + wanted
  texts = list(chunks(twice))
  assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
  noised = [inputs for inputs, _ in examples(twice)]
  # Two-byte chunks can be hidden in one way only.
  long = sum(len(chunk) > 20 for chunk in texts)
  assert len(set(noised)) >= long
  shuffled = list(chunks(list(batches(task, num_epochs=2))))
  half = len(shuffled) // 2
  assert shuffled[:half] != shuffled[half:]
  assert collections.Counter(shuffled) == wanted + wanted


@pytest.mark.parametrize('pack, before', [(True, 300), (False, 3)])
def test_a_restored_position_continues_exactly(task, tmp_path, pack, before):
  iterator = batches(task, pack=pack)
  take(iterator, before)  # 300 batches reach into the second epoch.
  iterator.save(tmp_path / 'position')
  expected = take(iterator, 70)
  restored = batches(task, pack=pack)
  take(restored, 2)  # Whatever was read before restoring is forgotten.
  restored.restore(tmp_path / 'position')
  assert same(take(restored, 70), expected)
  size = sum(f.stat().st_size for f in (tmp_path / 'position').iterdir())
  assert size < 10e6


def test_a_finished_position_is_finished_when_restored(small, tmp_path):
  iterator = batches(small, num_epochs=1)
  count = len(list(iterator))
  iterator.save(tmp_path)
  again = batches(small, num_epochs=1)
  again.restore(tmp_path)
  assert count > 5 and not list(again)


def test_positions_of_two_shards_lie_side_by_side(small, tmp_path):
  shards = [batches(small, shard_index=i, num_shards=2) for i in range(2)]
  for shard in shards:
    next(shard)
    shard.save(tmp_path)
  expected = [take(shard, 3) for shard in shards]
  for index in range(2):
    shard = batches(small, shard_index=index, num_shards=2)
    shard.restore(tmp_path)
    assert same(take(shard, 3), expected[index])
  with pytest.raises(UserError, match='as many hosts'):
    batches(small).restore(tmp_path)


def test_a_position_of_another_pipeline_is_refused(small, tmp_path):
  batches(small).save(tmp_path)
  with pytest.raises(UserError, match='batch_size=4 and this run has 8'):
    batches(small, batch_size=8).restore(tmp_path)
  with pytest.raises(UserError, match='seed=0 and this run has 1'):
    batches(small, seed=1).restore(tmp_path)


def test_padding_fills_the_last_batch_and_a_whole_one(small):
  iterator = batches(small, 'validation', 256, num_epochs=1, shuffle=False)
  batch = next(iterator)
  rows = batch['decoder_loss_weights'].any(1)
  assert 50 < rows.sum() < 256
  for value in batch.values():
    assert not value[~rows].any()
  nothing = iterator.padding()
  assert nothing.keys() == batch.keys()
  for name, value in nothing.items():
    assert value.shape == batch[name].shape and not value.any()
    assert value.dtype == np.int32


def test_packing_agrees_with_seqios():
  rng = np.random.default_rng(1)

  def generate():
    for _ in range(40):
      yield {
        'inputs': rng.integers(1, 99, rng.integers(1, 30), np.int32),
        'targets': rng.integers(1, 99, rng.integers(1, 12), np.int32),
      }

  found = list(generate())
  spec = {name: tf.TensorSpec([None], tf.int32) for name in LENGTHS}
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(found), output_signature=spec
  )
  lengths = {'inputs': 50, 'targets': 20}
  ours, theirs = (
    list(converter(pack=True)(dataset, lengths).as_numpy_iterator())
    for converter in (
      packing.EncDecFeatureConverter,
      seqio.EncDecFeatureConverter,
    )
  )
  assert same(ours, theirs) and len(ours) > 10


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
  assert {
    name: spec.shape[1] for name, spec in dataset.element_spec.items()
  } == (PACKED)
  assert next(dataset.as_numpy_iterator())['decoder_loss_weights'].any()


def test_quick_and_small():
  import time

  name = tasks.span_corruption(corpora.embedded(), vocabularies.byte())
  iterator = batches(name, batch_size=16)
  take(iterator, 5)
  start = time.process_time()
  take(iterator, 50)
  # About 0.006 on an idle machine.
  assert (time.process_time() - start) / 50 < 0.03


def test_vocabulary(small):
  iterator = batches(small)
  assert iterator.vocab_size == 359
  assert iterator.vocabulary == vocabularies.byte()


def test_slips_are_refused(small):
  with pytest.raises(UserError, match="is 'nonsense', which is not registered"):
    batches('nonsense')
  with pytest.raises(UserError, match="split is 'test'"):
    batches(small, 'test')
  with pytest.raises(UserError, match=r'BATCH_SIZE is 4.*of the 3 hosts'):
    batches(small, num_shards=3)
  with pytest.raises(UserError, match=r'share is 2; .* from 0 to 1'):
    batches(small, num_shards=2, shard_index=2)
  with pytest.raises(UserError, match='targets'):
    pipeline.Batches(small, {'inputs': 9}, 'train', 4, shuffle=False, seed=0)
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
  import sentencepiece

  source = corpora.text_files(text, validation_fraction=0.1)
  sentencepiece.SentencePieceTrainer.train(
    input=os.path.join(os.path.dirname(text), '0.txt'),
    model_prefix=str(tmp_path / 'model'),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
  )
  vocabulary = vocabularies.sentence_piece(str(tmp_path / 'model.model'))
  name = tasks.span_corruption(source, vocabulary, documents_joined=32)
  iterator = batches(name)
  found = take(iterator, 3)
  filled = np.mean([batch['encoder_input_tokens'] > 0 for batch in found])
  assert filled > 0.95
  iterator.save(tmp_path / 'position')
  expected = take(iterator, 3)
  restored = batches(name)
  restored.restore(tmp_path / 'position')
  assert same(take(restored, 3), expected)


def test_pairs_become_rows_with_prefix_eos_and_a_cut(tmp_path):
  pairs = {'abc': 'd', '': 'efghijkl', 'lmnopqrstuvwxyz': '<extra_id_0>'}
  path = tmp_path / 'pairs.jsonl'
  lines = [json.dumps({'inputs': a, 'targets': b}) for a, b in pairs.items()]
  path.write_text('\n'.join(lines))
  held_out = tmp_path / 'held_out.jsonl'
  held_out.write_text(lines[0])
  source = corpora.pairs(str(path), str(held_out))
  name = tasks.text_to_text(source, vocabularies.byte(), prefix='p: ')
  (batch,) = pipeline.Batches(
    name,
    {'inputs': 12, 'targets': 6},
    'train',
    3,
    shuffle=False,
    seed=0,
    pack=False,
    num_epochs=1,
  )

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
