"""Span corruption against its own definition, on real text."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from t5x_variants.data.base._tensorflow import tf
from t5x_variants.data.tasks import noise, span_corruption
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.errors import UserError

lengths = st.integers(2, 700)
densities = st.floats(0.05, 0.6)
mean_spans = st.floats(1.0, 8.0)
quick = hypothesis.settings(
  max_examples=25, deadline=None, derandomize=True, database=None
)


def mask_of(length, seed=0, density=0.15, mean=3.0):
  seeds = ((seed, 1), (seed, 2))
  return span_corruption.random_spans_noise_mask(
    tf.constant(length), seeds, density, mean
  ).numpy()


def runs(mask):
  """Lengths of the runs of True."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
  return edges[1::2] - edges[::2]


def tokens_of_corpus():
  path = corpora.embedded().list_shards('train')[0]
  with open(path, encoding='utf-8') as file:
    text = ''.join(json.loads(line)['text'] for line in file)
  return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3


def rebuilt(inputs, targets, first_sentinel, last_sentinel):
  """Puts the spans of the targets in the place of the inputs' sentinels."""
  spans, current = {}, None
  for token in targets:
    if last_sentinel <= token <= first_sentinel:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  whole = []
  for token in inputs:
    whole.extend(spans.get(token, [token]))
  return np.array(whole)


def test_t5s_lengths():
  assert noise.chunk_length(512, 114) == 568
  assert noise.corrupted_lengths(568) == (512, 114)
  assert noise.chunk_length(512, 512) == 568
  assert noise.chunk_length(256, 64) == 284
  assert noise.corrupted_lengths(284) == (256, 58)


@quick
@hypothesis.given(st.integers(4, 300), st.integers(4, 300), densities)
def test_chunk_and_all_shorter_ones_fit_and_no_longer_one(
  inputs, targets, density
):
  length = noise.chunk_length(inputs, targets, density)
  for shorter in range(2, length + 1):
    used = noise.corrupted_lengths(shorter, density)
    assert used[0] <= inputs and used[1] <= targets
  used = noise.corrupted_lengths(length + 1, density)
  assert used[0] > inputs or used[1] > targets


@quick
@hypothesis.given(lengths, densities, mean_spans, st.integers(0, 99))
def test_mask_has_the_counted_noise_and_spans(length, density, mean, seed):
  mask = mask_of(length, seed, density, mean)
  hidden, spans = noise.noise_counts(length, density, mean)
  assert mask.shape == (length,)
  assert mask.sum() == hidden
  assert len(runs(mask)) == spans
  assert not mask[0] and mask[-1]


@quick
@hypothesis.given(lengths, densities, mean_spans, st.integers(0, 99))
def test_inputs_and_targets_hold_the_text_and_its_sentinels(
  length, density, mean, seed
):
  vocab_size = 1000
  tokens = np.random.default_rng(seed).integers(3, 600, length, np.int32)
  mask = mask_of(length, seed, density, mean)
  example = span_corruption.apply_mask(tf.constant(tokens), mask, vocab_size)
  inputs, targets = example['inputs'].numpy(), example['targets'].numpy()
  count = len(runs(mask))
  expected = vocab_size - 1 - np.arange(count)
  np.testing.assert_array_equal(inputs[inputs >= 600], expected)
  np.testing.assert_array_equal(targets[targets >= 600], expected)
  used = noise.corrupted_lengths(length, density, mean)
  assert (inputs.size + 1, targets.size + 1) == used
  whole = rebuilt(inputs, targets, vocab_size - 1, vocab_size - count)
  np.testing.assert_array_equal(whole, tokens)


def test_mask_does_what_its_paper_shows():
  words = 'Thank you for inviting me to your party last week .'.split()
  mask = np.isin(words, ['for', 'inviting', 'last'])
  tokens = tf.range(10, 10 + len(words))
  example = span_corruption.apply_mask(tokens, mask, 100)
  expected = [10, 11, 99, 14, 15, 16, 17, 98, 19, 20]
  assert example['inputs'].numpy().tolist() == expected
  # The last kept span is marked too when a mask ends in kept tokens.
  expected = [99, 12, 13, 98, 18, 97]
  assert example['targets'].numpy().tolist() == expected


def test_a_mask_may_begin_with_noise():
  mask = np.array([True, False, False, True])
  example = span_corruption.apply_mask(tf.range(10, 14), mask, 100)
  assert example['inputs'].numpy().tolist() == [99, 11, 12, 98]
  assert example['targets'].numpy().tolist() == [10, 99, 13]


def test_every_composition_is_drawn_equally_often():
  draws = [
    tuple(span_corruption._composition(6, 3, (seed, 0)).numpy())
    for seed in range(1000)
  ]
  kinds, counts = np.unique(draws, axis=0, return_counts=True)
  assert len(kinds) == 10 and (kinds.sum(1) == 6).all() and kinds.min() == 1
  # 100 expected of each; five standard deviations are 47.
  assert abs(counts - 100).max() < 47


def test_statistics_on_real_text():
  tokens = tokens_of_corpus()[: 568 * 40]
  dataset = tf.data.Dataset.from_tensors({'targets': tokens})
  feature = type('Feature', (), {'vocabulary': vocabularies.byte()})
  features = {'inputs': feature, 'targets': feature}
  dataset = span_corruption.corrupt_spans(
    dataset, {'inputs': 512, 'targets': 114}, features
  )
  spans, hidden, total = [], 0, []
  for example in dataset.as_numpy_iterator():
    inputs, targets = example['inputs'], example['targets']
    assert (inputs.size, targets.size) == (511, 113)  # EOS comes later.
    sentinels = np.flatnonzero(targets >= 259)
    np.testing.assert_array_equal(targets[sentinels], 358 - np.arange(28))
    spans.extend(np.diff([*sentinels, targets.size]) - 1)
    hidden += (targets < 259).sum()
    total.append(rebuilt(inputs, targets, 358, 259))
  np.testing.assert_array_equal(np.concatenate(total), tokens)
  assert hidden / tokens.size == pytest.approx(0.15, abs=0.001)
  assert np.mean(spans) == pytest.approx(85 / 28)
  # Uniform compositions have nearly geometric spans: many of 1, some long.
  assert 0.2 < np.mean(np.array(spans) == 1) < 0.5
  assert max(spans) > 6


@pytest.mark.parametrize('size', [0, 1, 2, 3, 283, 284, 285, 286, 1000])
def test_documents_of_any_length_are_cut_without_loss(size):
  tokens = np.arange(3, 3 + size, dtype=np.int32)
  dataset = tf.data.Dataset.from_tensors({'targets': tokens})
  chunks = [
    chunk['targets']
    for chunk in span_corruption.split_into_chunks(
      dataset, 284
    ).as_numpy_iterator()
  ]
  lost = 1 if size % 284 == 1 else 0  # One token alone cannot be corrupted.
  whole = np.concatenate([np.zeros(0, np.int32), *chunks])
  np.testing.assert_array_equal(whole, tokens[: size - lost])
  assert all(2 <= chunk.size <= 284 for chunk in chunks)


def test_joined_documents_keep_all_tokens_in_order():
  sizes = [5, 0, 700, 1, 3]
  dataset = tf.data.Dataset.from_generator(
    lambda: ({'targets': np.full(n, n, np.int32)} for n in sizes),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  joined = span_corruption.join_documents(dataset, 2).as_numpy_iterator()
  assert [len(example['targets']) for example in joined] == [5, 701, 3]


def test_too_few_sentinels_or_no_room_is_refused():
  span_corruption.check_sentinels(vocabularies.byte(28), 568, 0.15, 3.0)
  with pytest.raises(UserError, match=r'27 sentinels.*need 28'):
    span_corruption.check_sentinels(vocabularies.byte(27), 568, 0.15, 3.0)
  with pytest.raises(UserError, match='no room'):
    noise.chunk_length(2, 64)


@pytest.mark.parametrize(
  'refused', [(0.0, 3.0), (1.0, 3.0), (0.15, 0.5), (float('nan'), 3.0)]
)
def test_impossible_noise_is_refused(refused):
  with pytest.raises(UserError, match=r'must lie|at least 1'):
    noise.check_noise(*refused)
