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
and m = 3, 568 tokens give 512 inputs and 114 targets: lengths follow from L
alone, whatever the draw.

References:
  Raffel et al., Exploring the Limits of Transfer Learning with a Unified
  Text-to-Text Transformer, JMLR 2020, sections 3.1.4 and 3.3.4.

The counts here are those of every path; `span_corruption` does the rest in
TensorFlow for seqio, this module in numpy for prepared data. Drawing a mask is
apart from applying it: the same mask gives the same example on both paths.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from t5x_variants import errors

# One token cannot be partly hidden: shorter chunks teach nothing.
MIN_CHUNK = 2
_GOLDEN = 0x9E3779B97F4A7C15
_64_BITS = 2**64 - 1


def check_noise(noise_density: float, mean_noise_span_length: float) -> None:
  """Refuses a density outside (0, 1) and a mean span shorter than a token."""
  if not 0.0 < noise_density < 1.0:
    raise errors.UserError(
      f'The noise_density is {noise_density!r}; the share of hidden tokens must'
      ' lie strictly between 0 and 1 (T5 has 0.15).'
    )
  if not mean_noise_span_length >= 1.0:
    raise errors.UserError(
      f'The mean_noise_span_length is {mean_noise_span_length!r}; a hidden span'
      ' has at least 1 token (T5 has 3.0).'
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
    raise errors.UserError(
      f'Inputs of {inputs_length} and targets of {targets_length} tokens have'
      f' no room for span corruption at noise_density {noise_density}: the'
      ' shortest example takes 3 of each.'
    )
  return length


def chunks(
  documents: Iterable[np.ndarray], length: int, documents_joined: int = 1
) -> Iterator[np.ndarray]:
  """Joins so many documents' tokens in a row and cuts them into chunks.

  Args:
    documents: tokens of a document each, any length.
    length: tokens of a chunk, at most.
    documents_joined: how many documents become one before they are cut.

  Yields:
    Every token but a last lone one of what was joined, once and in order.
  """
  waiting: list[np.ndarray] = []

  def cut():
    tokens = np.concatenate(waiting)
    for start in range(0, len(tokens) - MIN_CHUNK + 1, length):
      yield tokens[start : start + length]

  for tokens in documents:
    waiting.append(tokens)
    if len(waiting) == documents_joined:
      yield from cut()
      waiting = []
  if waiting:
    yield from cut()


def mix(values: np.ndarray) -> np.ndarray:
  """SplitMix64's finalizer on uint64: every bit depends on every bit."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def key(*numbers: int) -> int:
  """64 bits out of whole numbers: the same anywhere, with any library."""
  found = 0
  for number in numbers:
    mixed = mix(
      np.array([(found + _GOLDEN ^ int(number)) & _64_BITS], np.uint64)
    )
    found = int(mixed[0])
  return found


def draw(stream: int, places: np.ndarray) -> np.ndarray:
  """Numbers, uint64, at these places of the SplitMix64 stream of a key."""
  counters = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
  return mix(counters + np.uint64(stream))


def _composition(drawn: np.ndarray, parts: int) -> np.ndarray:
  """`parts` positive integers that sum to `len(drawn) + 1`, uniformly."""
  # The places between neighbouring tokens with the largest draws are cut.
  ends = np.empty(parts + 1, np.int64)
  ends[0], ends[parts] = 0, len(drawn) + 1
  if parts > 1:
    cuts = np.argpartition(drawn, len(drawn) - parts + 1)[1 - parts :]
    cuts.sort()
    ends[1:parts] = cuts + 1
  return ends[1:] - ends[:-1]


def random_spans_noise_mask(
  length: int,
  stream: int,
  noise_density: float,
  mean_noise_span_length: float,
) -> np.ndarray:
  """Draws which tokens are hidden.

  Args:
    length: of the chunk, at least 2.
    stream: a key; it alone decides the draw.
    noise_density: share of tokens to hide.
    mean_noise_span_length: mean number of tokens of a hidden span.

  Returns:
    A boolean [length] array that begins with False and ends with True.
  """
  noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
  drawn = draw(stream, np.arange(length - 2))
  lengths = np.empty(2 * spans, np.int64)
  lengths[0::2] = _composition(drawn[: length - noise - 1], spans)
  lengths[1::2] = _composition(drawn[length - noise - 1 :], spans)
  hidden = np.zeros(2 * spans, bool)
  hidden[1::2] = True
  return np.repeat(hidden, lengths)


def replace_spans(
  tokens: np.ndarray, mask: np.ndarray, vocab_size: int
) -> np.ndarray:
  """Puts a sentinel for each run of True in the mask.

  Args:
    tokens: int32 [length].
    mask: boolean [length].
    vocab_size: the i-th run becomes the id `vocab_size - 1 - i`.

  Returns:
    int32 tokens, shorter by the masked ones and longer by the runs.
  """
  starts = mask.copy()
  starts[1:] &= ~mask[:-1]
  replaced = tokens.copy()
  begins = np.flatnonzero(starts)
  replaced[begins] = vocab_size - 1 - np.arange(len(begins))
  return replaced[starts | ~mask]


def apply_mask(
  tokens: np.ndarray, mask: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets, without EOS, of tokens under a noise mask."""
  return (
    replace_spans(tokens, mask, vocab_size),
    replace_spans(tokens, ~mask, vocab_size),
  )
