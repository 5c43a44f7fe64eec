"""Span corruption: hide short spans of a text, ask for what was hidden.

A chunk of L tokens is cut into K spans to keep and K spans to hide, in turn,
beginning with one to keep. With noise density d and mean span length m

  hidden tokens  N = clip(round(L d), 1, L - 1)
  spans          K = clip(round(N / m), 1, min(N, L - N))

and the lengths of the K hidden spans are a uniformly drawn composition of N
into K positive parts, those of the kept spans one of L - N. The i-th hidden
span becomes the sentinel s_i = vocab_size - 1 - i in the inputs, the i-th kept
span becomes s_i in the targets:

  text      Thank you for inviting me to your party last week .
  inputs    Thank you s_0 me to your party s_1 week . EOS
  targets   s_0 for inviting s_1 last EOS

so that inputs hold L - N + K + 1 tokens and targets N + K + 1. With d = 0.15
and m = 3, 568 tokens give 512 inputs and 114 targets.

References:
  Raffel et al., Exploring the Limits of Transfer Learning with a Unified
  Text-to-Text Transformer, JMLR 2020, sections 3.1.4 and 3.3.4.

Counting is done in float64 with rounding half to even, in Python and in
TensorFlow alike, and drawing the mask is apart from applying it: the same mask
gives the same example whoever drew it. Every draw is stateless and seeded by
seqio, so that a run can be repeated and resumed.
"""

from t5x_variants.data import vocabularies
from t5x_variants.data._tensorflow import seqio, tf
from t5x_variants.errors import UserError

# Nothing here is for AutoGraph to rewrite, which takes seconds.
_as_is = tf.autograph.experimental.do_not_convert
# One token cannot be partly hidden: shorter chunks teach nothing.
MIN_CHUNK = 2


def check_noise(noise_density: float, mean_noise_span_length: float) -> None:
  """Refuses a density outside (0, 1) and a mean span shorter than a token."""
  if not 0.0 < noise_density < 1.0:
    raise UserError(
      f'noise_density={noise_density!r}: the share of hidden tokens must lie'
      ' strictly between 0 and 1 (T5 has 0.15)'
    )
  if not mean_noise_span_length >= 1.0:
    raise UserError(
      f'mean_noise_span_length={mean_noise_span_length!r}: a hidden span has'
      ' at least 1 token (T5 has 3.0)'
    )


def noise_counts(
  length: int, noise_density: float, mean_noise_span_length: float
) -> tuple[int, int]:
  """Hidden tokens and hidden spans of a chunk of `length` >= 2 tokens."""
  noise = min(max(round(length * noise_density), 1), length - 1)
  spans = max(round(noise / mean_noise_span_length), 1)
  return noise, min(spans, noise, length - noise)


def corrupted_lengths(
  length: int, noise_density: float = 0.15, mean_noise_span_length: float = 3.0
) -> tuple[int, int]:
  """Lengths of inputs and targets, EOS included, of a chunk of tokens."""
  noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
  return length - noise + spans + 1, noise + spans + 1


def chunk_length(
  inputs_length: int,
  targets_length: int,
  noise_density: float = 0.15,
  mean_noise_span_length: float = 3.0,
) -> int:
  """The most tokens of which any chunk fits once corrupted.

  Args:
    inputs_length: the longest inputs allowed, EOS included.
    targets_length: the longest targets allowed, EOS included.
    noise_density: share of tokens to hide.
    mean_noise_span_length: mean number of tokens of a hidden span.

  Returns:
    The largest length such that it and every shorter one fit.
  """
  check_noise(noise_density, mean_noise_span_length)
  length = MIN_CHUNK - 1
  while True:
    inputs, targets = corrupted_lengths(
      length + 1, noise_density, mean_noise_span_length
    )
    if inputs > inputs_length or targets > targets_length:
      break
    length += 1
  if length < MIN_CHUNK:
    raise UserError(
      f'inputs of {inputs_length} and targets of {targets_length} tokens have'
      f' no room for span corruption at noise_density={noise_density}: the'
      ' shortest example takes 3 of each'
    )
  return length


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
  noise = tf.cast(tf.round(exact * noise_density), tf.int32)
  noise = tf.clip_by_value(noise, 1, length - 1)
  spans = tf.cast(noise, tf.float64) / mean_noise_span_length
  spans = tf.maximum(tf.cast(tf.round(spans), tf.int32), 1)
  spans = tf.minimum(spans, tf.minimum(noise, length - noise))
  kept_lengths = _composition(length - noise, spans, seeds[0])
  noise_lengths = _composition(noise, spans, seeds[1])
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
    chunks = (tf.size(tokens) + length - MIN_CHUNK) // length
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
    noise_counts(shorter, noise_density, mean_noise_span_length)[1]
    for shorter in range(MIN_CHUNK, length + 1)
  )
  available = vocabularies.num_sentinels(vocabulary)
  if available < needed:
    raise UserError(
      f'the vocabulary has {available} sentinels (extra_ids) and chunks of'
      f' {length} tokens need {needed}: raise extra_ids to {needed} or more,'
      ' or take shorter inputs and targets'
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
    raise UserError(
      f'task feature lengths {sequence_length!r}: span corruption needs those'
      " of 'inputs' and 'targets', which say how much text fills an example"
    )
  vocabulary = output_features['targets'].vocabulary
  vocab_size = vocabulary.vocab_size
  length = chunk_length(
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
