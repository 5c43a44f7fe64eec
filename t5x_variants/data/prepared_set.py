"""A set of prepared data on disk: chunks of tokens, not yet corrupted.

  info.json                           what it is; written last of all
  train-00000-of-00008.array_record   chunks, so many to a record
  train.lengths                       tokens of every chunk, in order
  validation...                       the same for the other split
  vocabulary.model                    the SentencePiece model, if there is one

A chunk is at most as long as fits once corrupted and stands for one example.
Its length alone tells the lengths of the example (see `noise`), so that rows
can be packed without reading a token. Tokens and lengths are little-endian
uint16, or uint32 where the vocabulary is larger. `preparation` writes such a
set, with TensorFlow; nothing here imports it.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from t5x_variants.data import noise
from t5x_variants.errors import UserError

# Raise it when a reader of today would misread the set.
FORMAT = 1
INFO = 'info.json'
# The reader keeps 54 bytes of index for each record in memory, and a record is
# read and unpacked as a whole.
CHUNKS_PER_RECORD = 16
_AGAIN = 'prepare it again (python -m t5x_variants.prepare_data)'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split: its name, examples (chunks) and size."""

  file: str
  examples: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
  """One split: its examples, their tokens, and its files in order."""

  examples: int
  tokens: int
  shards: tuple[Shard, ...]


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

  @property
  def dtype(self) -> np.dtype:
    """Of tokens and lengths on disk."""
    large = max(self.vocabulary.vocab_size, self.chunk_length) > 2**16
    return np.dtype('<u4' if large else '<u2')

  def to_json(self) -> str:
    """As text; the same set, the same text."""
    return json.dumps(dataclasses.asdict(self), indent=1) + '\n'

  def fingerprint(self) -> str:
    """Tells this set from any other, whichever libraries wrote it."""
    fields = dataclasses.asdict(self) | {'libraries': {}}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(text: str) -> Info:
  """The reverse of `to_json`; ValueError, TypeError or KeyError if damaged."""
  fields = json.loads(text)
  splits = {
    name: Split(
      split['examples'],
      split['tokens'],
      tuple(Shard(**shard) for shard in split['shards']),
    )
    for name, split in fields['splits'].items()
  }
  vocabulary = Vocabulary(**fields['vocabulary'])
  return Info(**fields | {'splits': splits, 'vocabulary': vocabulary})


def load(folder: str | os.PathLike, task: str | None = None) -> Info:
  """Reads info.json and holds the files against it.

  Args:
    folder: of the set.
    task: the name it must have; None: any.

  Returns:
    The set's description.

  Raises:
    UserError: it is not there, not whole, damaged, of another version, of
      another task or of another vocabulary.
  """
  if '://' in os.fspath(folder):
    raise UserError(
      f'PREPARED_DATA={os.fspath(folder)!r}: training reads prepared data as'
      ' files; mount the bucket (Cloud Storage FUSE) and give the folder, or'
      ' copy the set to a disk'
    )
  path = pathlib.Path(folder).expanduser()
  info = _read_info(path)
  if task is not None and task != info.task:
    raise UserError(
      f'{path} was prepared from the task {info.task!r} and'
      f' MIXTURE_OR_TASK_NAME is {task!r}: give the folder of that task, or set'
      ' MIXTURE_OR_TASK_NAME to None'
    )
  for name, split in info.splits.items():
    expected = [(shard.file, shard.bytes) for shard in split.shards]
    expected.append((lengths_file(name), split.examples * info.dtype.itemsize))
    for file, size in expected:
      found = _size(path / file)
      if found != size:
        raise UserError(
          f'{path / file} is damaged: it has {found} bytes instead of {size};'
          f' remove {path} and {_AGAIN}'
        )
  _check_vocabulary(path, info.vocabulary)
  return info


def _read_info(path: pathlib.Path) -> Info:
  try:
    text = (path / INFO).read_text(encoding='utf-8', errors='replace')
  except OSError as error:
    half = ' (begun there, but not finished)' if path.is_dir() else ''
    raise UserError(
      f'{path} holds no whole set of prepared data{half}: write one with python'
      f' -m t5x_variants.prepare_data --gin_file=gin/data/X.gin --output={path}'
    ) from error
  version = FORMAT
  with contextlib.suppress(ValueError, AttributeError):
    version = json.loads(text).get('format', FORMAT)
  if version != FORMAT:
    raise UserError(
      f'{path / INFO} has format {version!r} and this version of'
      f' t5x_variants reads {FORMAT}: {_AGAIN} into another folder'
    )
  try:
    return from_json(text)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'{path / INFO} is damaged or was not written by prepare_data: remove the'
      f' folder and {_AGAIN}'
    ) from error


def _size(path: pathlib.Path) -> int:
  try:
    return path.stat().st_size
  except OSError:
    return 0


def _check_vocabulary(path: pathlib.Path, vocabulary: Vocabulary) -> None:
  try:
    model = (path / vocabulary.file).read_bytes() if vocabulary.file else b''
  except OSError:
    model = b''
  if vocabulary.hashed(model) != vocabulary.hash:
    raise UserError(
      f'{path / (vocabulary.file or INFO)} is not the vocabulary that the set'
      f' was prepared with ({vocabulary.kind}, {vocabulary.vocab_size} ids,'
      f' SHA-256 {vocabulary.hash[:12]}): put that back, or {_AGAIN} into'
      ' another folder'
    )


def shard_file(split: str, index: int, count: int) -> str:
  """The name of a file of chunks."""
  return f'{split}-{index:05d}-of-{count:05d}.array_record'


def lengths_file(split: str) -> str:
  """The name of the file of lengths."""
  return f'{split}.lengths'


class Chunks:
  """The chunks of one split by their number, and their lengths."""

  def __init__(self, folder: str | os.PathLike, info: Info, split: str):
    if split not in info.splits:
      raise UserError(
        f'split={split!r}: {os.fspath(folder)} has {list(info.splits)}'
      )
    self._folder = pathlib.Path(folder).expanduser()
    self._dtype = info.dtype
    self._vocab_size = info.vocabulary.vocab_size
    self._longest = info.chunk_length
    self._shards = info.splits[split].shards
    self._ends = list(itertools.accumulate(s.examples for s in self._shards))
    self._readers = {}
    # Mapped, not read: a large corpus has hundreds of millions.
    self._lengths_file = self._folder / lengths_file(split)
    lengths = np.memmap(self._lengths_file, self._dtype, 'r')
    self._lengths = lengths.view(np.ndarray)

  def __len__(self) -> int:
    return len(self._lengths)

  def lengths(self, numbers: np.ndarray) -> np.ndarray:
    """Tokens of each of these chunks."""
    found = self._lengths[numbers]
    if len(found) and not noise.MIN_CHUNK <= found.max() <= self._longest:
      raise UserError(
        f'{self._lengths_file} is damaged: a chunk has {found.max()}'
        f' tokens; remove {self._folder} and {_AGAIN}'
      )
    return found

  def __getitem__(self, number: int) -> np.ndarray:
    """Tokens, int32, of a chunk."""
    number = int(number)
    shard = bisect.bisect_right(self._ends, number)
    first = self._ends[shard] - self._shards[shard].examples
    record, slot = divmod(number - first, CHUNKS_PER_RECORD)
    read = self._read(shard, record)
    sizes = self._lengths[number - slot : number + 1]
    start = int(sizes[:-1].sum(dtype=np.int64))
    tokens = read[start : start + int(sizes[-1])].astype(np.int32)
    if len(tokens) != sizes[-1] or tokens.max() >= self._vocab_size:
      raise self._damaged(shard, 'its tokens are not those of this set')
    return tokens

  def _read(self, shard: int, record: int) -> np.ndarray:
    """A whole record."""
    try:
      reader = self._readers.get(shard)
      if reader is None:
        reader = self._readers[shard] = _open(
          self._folder / self._shards[shard].file
        )
      # Of a range: `read([record])` walks through the whole index.
      (data,) = reader.read(record, record + 1)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
      raise self._damaged(shard, ' '.join(str(error).split())) from error
    return np.frombuffer(data, self._dtype)

  def _damaged(self, shard: int, why: str) -> UserError:
    return UserError(
      f'{self._folder / self._shards[shard].file} is damaged ({why[:200]}):'
      f' remove {self._folder} and {_AGAIN}'
    )


def _open(path: pathlib.Path):
  from array_record.python import array_record_module

  # No reading ahead: the next chunk lies anywhere.
  return array_record_module.ArrayRecordReader(
    str(path), options='readahead_buffer_size:0', file_reader_buffer_size=32768
  )
