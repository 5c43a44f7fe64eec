"""Span corruption by both ways to read, against its own definition."""

import collections
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from t5x_variants.data.base._tensorflow import tf
from t5x_variants.data.tasks import noise, span_corruption
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.errors import UserError

densities = st.floats(0.05, 0.6)
masks = (
  st.integers(2, 700),
  densities,
  st.floats(1.0, 8.0),
  st.integers(0, 2**31 - 1),
)


def of_seqio(length, seed, density=0.15, mean=3.0):
  return span_corruption.random_spans_noise_mask(
    tf.constant(length), ((seed, 1), (seed, 2)), density, mean
  ).numpy()


def of_numpy(length, seed, density=0.15, mean=3.0):
  stream = noise.key(seed)  # Of 64 bits.
  return noise.random_spans_noise_mask(length, stream, density, mean)


def dataset_of(documents):
  return tf.data.Dataset.from_generator(
    lambda: ({'targets': document} for document in documents),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )


def listed(dataset):
  return [x['targets'].tolist() for x in dataset.as_numpy_iterator()]


def rebuilt(inputs, targets, last_sentinel):
  """Puts the spans of the targets in the place of the inputs' sentinels."""
  spans = np.split(targets, np.flatnonzero(targets >= last_sentinel))[1:]
  spans = {span[0]: span[1:] for span in spans}
  return np.concatenate([spans.get(token, [token]) for token in inputs])


def test_t5s_lengths():
  assert noise.chunk_length(512, 114) == 568
  assert noise.corrupted_lengths(568) == (512, 114)
  assert noise.chunk_length(512, 512) == 568
  assert noise.chunk_length(256, 64) == 284
  assert noise.corrupted_lengths(284) == (256, 58)


@hypothesis.given(st.integers(4, 300), st.integers(4, 300), densities)
def test_chunk_and_all_shorter_ones_fit_and_no_longer_one(
  inputs, targets, density
):
  length = noise.chunk_length(inputs, targets, density)
  for size in range(2, length + 2):
    used = noise.corrupted_lengths(size, density)
    assert (used[0] <= inputs and used[1] <= targets) == (size <= length)


@pytest.mark.parametrize('draw, examples', [(of_seqio, 15), (of_numpy, 30)])
def test_a_mask_has_the_counted_noise_and_spans(draw, examples):
  @hypothesis.settings(max_examples=examples)
  @hypothesis.given(*masks)
  def check(length, density, mean, seed):
    mask = draw(length, seed, density, mean)
    hidden, spans = noise.noise_counts(length, density, mean)
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    assert (mask.size, mask.sum(), starts.sum()) == (length, hidden, spans)
    assert not mask[0] and mask[-1]

  check()


@hypothesis.given(*masks)
def test_inputs_and_targets_hold_the_text_and_its_sentinels(
  length, density, mean, seed
):
  tokens = np.random.default_rng(seed).integers(3, 600, length, np.int32)
  mask = of_numpy(length, seed, density, mean)
  inputs, targets = noise.apply_mask(tokens, mask, 1000)
  expected = 999 - np.arange(noise.noise_counts(length, density, mean)[1])
  np.testing.assert_array_equal(inputs[inputs >= 600], expected)
  np.testing.assert_array_equal(targets[targets >= 600], expected)
  used = noise.corrupted_lengths(length, density, mean)
  assert (inputs.size + 1, targets.size + 1) == used
  np.testing.assert_array_equal(rebuilt(inputs, targets, 600), tokens)


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.lists(st.booleans(), min_size=2, max_size=80))
def test_one_mask_one_example_whoever_applies_it(mask):
  mask = np.array([False, *mask, True])
  tokens = np.arange(3, 3 + len(mask), dtype=np.int32)
  theirs = span_corruption.apply_mask(tf.constant(tokens), mask, 500)
  ours = noise.apply_mask(tokens, mask, 500)
  for name, found in zip(('inputs', 'targets'), ours, strict=True):
    np.testing.assert_array_equal(found, theirs[name].numpy())
    assert found.dtype == np.int32


@pytest.mark.parametrize(
  'hidden, inputs, targets',
  [
    # As its paper shows: 'Thank you for inviting me to your party last week .'
    # The last kept span is marked too when a mask ends in kept tokens.
    ([2, 3, 8], [10, 11, 99, 14, 15, 16, 17, 98, 19, 20], '99 12 13 98 18 97'),
    # A mask may begin with noise.
    ([0, 10], [99, *range(11, 20), 98], '10 99 20'),
  ],
)
def test_a_mask_by_hand(hidden, inputs, targets):
  mask = np.isin(np.arange(11), hidden)
  example = span_corruption.apply_mask(tf.range(10, 21), mask, 100)
  assert example['inputs'].numpy().tolist() == inputs
  assert example['targets'].numpy().tolist() == [*map(int, targets.split())]


@pytest.mark.parametrize(
  'draw, draws',
  [
    (
      lambda seed: span_corruption._composition(7, 3, (seed >> 33, 0)).numpy(),
      1000,
    ),
    (lambda seed: noise._composition(noise.draw(seed, np.arange(6)), 3), 6000),
  ],
)
def test_every_composition_is_drawn_as_often(draw, draws):
  # 7 = 3 positive parts in 15 ways.
  seeds = noise.draw(1, np.arange(draws))
  found = collections.Counter(
    tuple(draw(seed).tolist()) for seed in seeds.tolist()
  )
  assert len(found) == 15
  assert all(min(parts) > 0 and sum(parts) == 7 for parts in found)
  mean = draws / 15
  chi_square = sum((count - mean) ** 2 / mean for count in found.values())
  assert chi_square < 36.1  # 1 in 1000 for 14 degrees of freedom.


def test_statistics_on_real_text():
  with open(corpora.embedded().list_shards('train')[0], encoding='utf-8') as f:
    text = ''.join(json.loads(line)['text'] for line in f)
  tokens = np.frombuffer(text.encode()[: 568 * 40], np.uint8) + np.int32(3)
  feature = type('Feature', (), {'vocabulary': vocabularies.byte()})
  dataset = span_corruption.corrupt_spans(
    dataset_of([tokens]),
    {'inputs': 512, 'targets': 114},
    {'inputs': feature, 'targets': feature},
  )
  spans, hidden, total = [], 0, []
  for example in dataset.as_numpy_iterator():
    inputs, targets = example['inputs'], example['targets']
    assert (inputs.size, targets.size) == (511, 113)  # EOS comes later.
    sentinels = np.flatnonzero(targets >= 259)
    np.testing.assert_array_equal(targets[sentinels], 358 - np.arange(28))
    spans.extend(np.diff([*sentinels, targets.size]) - 1)
    hidden += (targets < 259).sum()
    total.append(rebuilt(inputs, targets, 259))
  np.testing.assert_array_equal(np.concatenate(total), tokens)
  assert hidden / tokens.size == pytest.approx(0.15, abs=0.001)
  assert np.mean(spans) == pytest.approx(85 / 28)
  # Uniform compositions have nearly geometric spans: many of 1, some long.
  assert 0.2 < np.mean(np.array(spans) == 1) < 0.5
  assert max(spans) > 6


@pytest.mark.parametrize('joined', [1, 3])
def test_documents_are_joined_and_cut_without_loss(joined):
  """The same chunks in both ways; one token alone cannot be corrupted."""
  sizes = [0, 1, 2, 12, 700, 24, 25, 3, 0, 7]
  # Each document of one number.
  documents = [np.full(n, n + 3, np.int32) for n in sizes]
  together = span_corruption.join_documents(dataset_of(documents), joined)
  whole = [
    np.concatenate(documents[i : i + joined]).tolist()
    for i in range(0, len(documents), joined)
  ]
  assert listed(together) == whole
  chunks = [x[i : i + 12] for x in whole for i in range(0, len(x), 12)]
  chunks = [chunk for chunk in chunks if len(chunk) > 1]
  assert listed(span_corruption.split_into_chunks(together, 12)) == chunks
  ours = noise.chunks(documents, 12, joined)
  assert [chunk.tolist() for chunk in ours] == chunks


def test_what_cannot_be_is_refused():
  span_corruption.check_sentinels(vocabularies.byte(28), 568, 0.15, 3.0)
  with pytest.raises(UserError, match=r'27 sentinels.*need 28'):
    span_corruption.check_sentinels(vocabularies.byte(27), 568, 0.15, 3.0)
  with pytest.raises(UserError, match='no room'):
    noise.chunk_length(2, 64)
  nan = float('nan')
  for given in ((0.0, 3.0), (1.0, 3.0), (0.15, 0.5), (nan, 3.0), (0.15, nan)):
    with pytest.raises(UserError, match=r'must lie|at least 1'):
      noise.check_noise(*given)
