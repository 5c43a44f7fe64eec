"""What a set of prepared data is: info.json as records, and their checksum.

The text has a CRC-32 over its values, and over each file of lengths (see
`format`), so that damage to it is seen. Sets of format 1, which earlier
versions wrote, have none.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from t5x_variants.data.base import checked_json
from t5x_variants.data.tasks import noise

# Raise it when a reader of today would misread the set.
FORMAT = 2
# The one without checksums.
FIRST_FORMAT = 1


def _check_types(record) -> None:
  """Refuses values of JSON that are not what the annotations of a record say.

  Raises:
    ValueError: text where a number must be, a number below 0, and the like.
  """
  for field in dataclasses.fields(record):
    value = getattr(record, field.name)
    if field.type is int:
      right = type(value) is int and value >= 0
    elif field.type is float:
      right = type(value) in (int, float)
    elif field.type is str:
      right = isinstance(value, str)
    else:
      continue
    if not right:
      raise ValueError(f'{field.name} is {value!r}')


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split: its name, examples (chunks) and size."""

  file: str
  examples: int
  bytes: int

  def __post_init__(self):
    _check_types(self)


@dataclasses.dataclass(frozen=True)
class Split:
  """One split.

  Attributes:
    examples: their number.
    tokens: of all of them.
    shards: the files, in order.
    lengths_crc32: CRC-32 of the file of lengths; None in a set of format 1.
  """

  examples: int
  tokens: int
  shards: tuple[Shard, ...]
  lengths_crc32: int | None = None

  def __post_init__(self):
    _check_types(self)
    if not 0 < self.examples == sum(shard.examples for shard in self.shards):
      raise ValueError(f'examples is {self.examples}, not that of its files')


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """What the tokens are ids of.

  Attributes:
    kind: 'ByteVocabulary' and the like, seqio's name.
    vocab_size: number of ids, sentinels included.
    extra_ids: sentinels that are added to the vocabulary's own ids.
    eos_id: ends inputs and targets.
    file: the model's name in the set's folder; '' where there is none.
    hash: of all this and of the model's bytes, SHA-256.
  """

  kind: str
  vocab_size: int
  extra_ids: int
  eos_id: int
  file: str
  hash: str

  def __post_init__(self):
    _check_types(self)

  def hashed(self, model: bytes) -> str:
    """What the hash must be, given the bytes of the model file."""
    described = repr((self.kind, self.vocab_size, self.extra_ids, self.eos_id))
    return hashlib.sha256(described.encode() + b'\0' + model).hexdigest()


@dataclasses.dataclass(frozen=True)
class Info:
  """info.json.

  Attributes:
    task: seqio's name of the task.
    task_feature_lengths: of inputs and targets, for which it was cut.
    chunk_length: tokens of the longest chunk allowed.
    noise_density: share of tokens to hide, the task's.
    mean_noise_span_length: tokens of a hidden span, the task's.
    documents_joined: how many documents were joined before they were cut.
    vocabulary: what the tokens are ids of.
    splits: by name.
    libraries: versions of what wrote it.
    format: version of this layout.
  """

  task: str
  task_feature_lengths: Mapping[str, int]
  chunk_length: int
  noise_density: float
  mean_noise_span_length: float
  documents_joined: int
  vocabulary: Vocabulary
  splits: Mapping[str, Split]
  libraries: Mapping[str, str]
  format: int = FORMAT

  def __post_init__(self):
    _check_types(self)
    noise.check_noise(self.noise_density, self.mean_noise_span_length)
    if self.chunk_length < noise.MIN_CHUNK:
      raise ValueError(f'chunk_length is {self.chunk_length}')

  @property
  def dtype(self) -> np.dtype:
    """Of tokens and lengths on disk."""
    large = max(self.vocabulary.vocab_size, self.chunk_length) > 2**16
    return np.dtype('<u4' if large else '<u2')

  def target_tokens(self, split: str) -> float:
    """About how many tokens a model is asked for in an epoch of a split."""
    share = self.noise_density * (1.0 + 1.0 / self.mean_noise_span_length)
    # Of each example one is the EOS.
    return self.splits[split].tokens * share + self.splits[split].examples

  def fields(self) -> dict:
    """All of it as JSON has it; a set of format 1 as that format has it."""
    found = dataclasses.asdict(self)
    for split in found['splits'].values():
      if split['lengths_crc32'] is None:
        del split['lengths_crc32']
    return json.loads(json.dumps(found))

  def to_json(self) -> str:
    """As text with its checksum; the same set, the same text."""
    return checked_json.dumps(self.fields(), indent=1)

  def fingerprint(self) -> str:
    """Tells this set from any other, whichever libraries wrote it."""
    text = json.dumps(self.fields() | {'libraries': {}}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(data: bytes) -> Info:
  """The reverse of `to_json`.

  Raises:
    ValueError: the text is damaged, or was never written by `to_json`.
  """
  fields, checked = checked_json.loads(data)
  try:
    if checked == (fields['format'] == FIRST_FORMAT):
      raise ValueError('it has no checksum, or one too many')
    splits = {
      name: Split(**split | {'shards': tuple(map(_shard, split['shards']))})
      for name, split in fields['splits'].items()
    }
    vocabulary = Vocabulary(**fields['vocabulary'])
    return Info(**fields | {'splits': splits, 'vocabulary': vocabulary})
  except (TypeError, KeyError, AttributeError) as error:
    raise ValueError(f'a field is missing or of the wrong kind: {error}') from (
      error
    )


def _shard(fields: Mapping) -> Shard:
  return Shard(**fields)
