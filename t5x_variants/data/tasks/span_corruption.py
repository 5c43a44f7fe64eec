"""Span corruption as a seqio preprocessor; `noise` says what it is.

Counting is done in float64 with rounding half to even, in Python and in
TensorFlow alike, and drawing the mask is apart from applying it: the same mask
gives the same example whoever drew it. Every draw is stateless and seeded by
seqio, so that a run can be repeated and resumed.
"""

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.tasks import noise
from t5x_variants.data.text import vocabularies

# Nothing here is for AutoGraph to rewrite, which takes seconds.
_as_is = tf.autograph.experimental.do_not_convert


def _composition(total, parts, seed):
  """Draws `parts` positive int32 that sum to `total`, uniformly."""
  # The places between neighbouring tokens with the largest draws are cut.
  draws = tf.random.stateless_uniform([total - 1], seed)
  cuts = tf.math.top_k(draws, parts - 1, sorted=False).indices
  cuts = -tf.math.top_k(-cuts, parts - 1).values + 1
  return tf.concat([cuts, [total]], 0) - tf.concat([[0], cuts], 0)


def random_spans_noise_mask(
  length, seeds, noise_density: float, mean_noise_span_length: float
):
  """Draws which tokens are hidden.

  Args:
    length: int32 scalar, at least 2.
    seeds: two stateless seeds, each a pair of integers.
    noise_density: share of tokens to hide.
    mean_noise_span_length: mean number of tokens of a hidden span.

  Returns:
    A boolean [length] tensor that begins with False and ends with True.
  """
  exact = tf.cast(length, tf.float64)
  hidden = tf.cast(tf.round(exact * noise_density), tf.int32)
  hidden = tf.clip_by_value(hidden, 1, length - 1)
  spans = tf.cast(hidden, tf.float64) / mean_noise_span_length
  spans = tf.maximum(tf.cast(tf.round(spans), tf.int32), 1)
  spans = tf.minimum(spans, tf.minimum(hidden, length - hidden))
  kept_lengths = _composition(length - hidden, spans, seeds[0])
  noise_lengths = _composition(hidden, spans, seeds[1])
  lengths = tf.reshape(tf.stack([kept_lengths, noise_lengths], 1), [-1])
  span_of_token = tf.searchsorted(
    tf.cumsum(lengths), tf.range(length), side='right'
  )
  return tf.equal(tf.bitwise.bitwise_and(span_of_token, 1), 1)


def replace_spans(tokens, mask, vocab_size: int):
  """Puts a sentinel for each run of True in the mask.

  Args:
    tokens: int32 [length].
    mask: boolean [length].
    vocab_size: the i-th run becomes the id `vocab_size - 1 - i`.

  Returns:
    int32 tokens, shorter by the masked ones and longer by the runs.
  """
  follows = tf.concat([[False], mask[:-1]], 0)
  starts = mask & ~follows
  sentinels = vocab_size - tf.cumsum(tf.cast(starts, tokens.dtype))
  replaced = tf.where(starts, sentinels, tokens)
  return tf.gather(replaced, tf.where(starts | ~mask)[:, 0])


def apply_mask(tokens, mask, vocab_size: int):
  """Inputs and targets, without EOS, of tokens under a noise mask."""
  return {
    'inputs': replace_spans(tokens, mask, vocab_size),
    'targets': replace_spans(tokens, ~mask, vocab_size),
  }


def split_into_chunks(dataset, length: int):
  """Cuts 'targets' of each example into chunks of at most `length` tokens.

  Every token but a last lone one comes out once and in order; an example
  with fewer than two tokens gives none.
  """

  @_as_is
  def cut(example):
    tokens = example['targets']
    chunks = (tf.size(tokens) + length - noise.MIN_CHUNK) // length
    tokens = tokens[: chunks * length]
    total = tf.size(tokens)
    sizes = tf.minimum(length, total - tf.range(chunks) * length)
    padded = tf.pad(tokens, [[0, chunks * length - total]])
    return {'targets': tf.reshape(padded, [chunks, length]), 'size': sizes}

  # One by one: this map is cheap, and parallel calls would hold whole
  # documents in memory and in every saved position.
  dataset = dataset.map(cut).unbatch()
  return dataset.map(
    lambda chunk: {'targets': chunk['targets'][: chunk['size']]}
  )


def join_documents(dataset, documents: int):
  """Joins the tokens of so many successive examples into one."""
  if documents == 1:
    return dataset
  dataset = dataset.map(lambda example: {'targets': example['targets']})
  dataset = dataset.padded_batch(documents, padded_shapes={'targets': [None]})
  # No vocabulary has 0, the padding, for a piece of text.
  return dataset.map(
    lambda batch: {
      'targets': tf.boolean_mask(batch['targets'], batch['targets'] > 0)
    }
  )


def check_sentinels(
  vocabulary, length: int, noise_density: float, mean_noise_span_length: float
) -> None:
  """Refuses a vocabulary with fewer sentinels than a chunk can need."""
  needed = max(
    noise.noise_counts(shorter, noise_density, mean_noise_span_length)[1]
    for shorter in range(noise.MIN_CHUNK, length + 1)
  )
  available = vocabularies.num_sentinels(vocabulary)
  if available < needed:
    raise errors.UserError(
      f'The vocabulary has {available} sentinels (extra_ids) and chunks of'
      f' {length} tokens need {needed}: raise extra_ids to {needed} or more,'
      ' or take shorter inputs and targets.'
    )


def corrupt_spans(
  dataset,
  sequence_length,
  output_features,
  *,
  noise_density: float = 0.15,
  mean_noise_span_length: float = 3.0,
  documents_joined: int = 1,
):
  """A seqio preprocessor: token 'targets' to corrupted inputs and targets.

  Args:
    dataset: examples with int32 'targets' [any length], a document each.
    sequence_length: seqio's lengths of 'inputs' and 'targets', EOS included.
    output_features: seqio's features, for the vocabulary.
    noise_density: share of tokens to hide.
    mean_noise_span_length: mean number of tokens of a hidden span.
    documents_joined: so many documents are joined before they are cut.

  Returns:
    A dataset of 'inputs' and 'targets', without EOS.
  """
  if not sequence_length or not {'inputs', 'targets'} <= set(sequence_length):
    raise errors.UserError(
      f'TASK_FEATURE_LENGTHS is {sequence_length!r}; span corruption needs'
      " those of 'inputs' and 'targets', which say how much text fills an"
      ' example.'
    )
  vocabulary = output_features['targets'].vocabulary
  vocab_size = vocabulary.vocab_size
  length = noise.chunk_length(
    sequence_length['inputs'],
    sequence_length['targets'],
    noise_density,
    mean_noise_span_length,
  )
  check_sentinels(vocabulary, length, noise_density, mean_noise_span_length)

  # Sequential for the same reason as above, and because the packing that
  # follows costs more than this map.
  @seqio.map_over_dataset(num_seeds=2, num_parallel_calls=None)
  @_as_is
  def corrupt(example, seeds):
    tokens = example['targets']
    mask = random_spans_noise_mask(
      tf.size(tokens), seeds, noise_density, mean_noise_span_length
    )
    return apply_mask(tokens, mask, vocab_size)

  dataset = join_documents(dataset, documents_joined)
  return corrupt(split_into_chunks(dataset, length))
