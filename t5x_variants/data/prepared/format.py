"""A set of prepared data on disk: chunks of tokens, not yet corrupted.

  info.json                           what it is; written last of all
  train-00000-of-00008.array_record   chunks, so many to a record
  train.lengths                       tokens of every chunk, in order
  validation...                       the same for the other split
  vocabulary.model                    the SentencePiece model, if there is one

A chunk is at most as long as fits once corrupted and stands for one example.
Its length alone tells the lengths of the example (see `noise`), so that rows
can be packed without reading a token. Tokens and lengths are little-endian
uint16, or uint32 where the vocabulary is larger. `writer` writes such a
set, with TensorFlow; nothing here imports it.

A flipped bit in any of these files is an error or changes nothing. ArrayRecord
has a hash of its own over each record and over its index, and checks them as
they are read. The lengths and info.json have a CRC-32 in info.json, checked
when they are opened; the vocabulary has a SHA-256. Sets of format 1, which
earlier versions wrote, have no CRC-32 and can still be read.
"""

import bisect
import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import zlib

import numpy as np

from t5x_variants import errors, paths
from t5x_variants.data.prepared import info as prepared_info
from t5x_variants.data.tasks import noise

INFO = 'info.json'
# The reader keeps 54 bytes of index for each record in memory, and a record is
# read and unpacked as a whole.
CHUNKS_PER_RECORD = 16
_AGAIN = 'prepare it again (python -m t5x_variants.prepare_data)'
_logger = logging.getLogger('t5x_variants')


def load(
  folder: str | os.PathLike, task: str | None = None
) -> prepared_info.Info:
  """Reads info.json and holds the files against it.

  Args:
    folder: of the set.
    task: the name it must have; None: any.

  Returns:
    The set's description.

  Raises:
    errors.UserError: it is not there, not whole, damaged, of another version,
      of another task or of another vocabulary.
  """
  if paths.is_remote(folder):
    raise errors.UserError(
      f'PREPARED_DATA is {os.fspath(folder)!r}, and training reads prepared'
      ' data as files: mount the bucket (Cloud Storage FUSE) and give the'
      ' folder, or copy the set to a disk.'
    )
  path = pathlib.Path(folder).expanduser()
  info = _read_info(path)
  if task is not None and task != info.task:
    raise errors.UserError(
      f'The set in {path} was prepared from the task {info.task!r} and'
      f' MIXTURE_OR_TASK_NAME is {task!r}: give the folder of that task, or set'
      ' MIXTURE_OR_TASK_NAME to None.'
    )
  for name, split in info.splits.items():
    expected = [(shard.file, shard.bytes) for shard in split.shards]
    expected.append((lengths_file(name), split.examples * info.dtype.itemsize))
    for file, size in expected:
      found = _size(path / file)
      if found != size:
        raise errors.UserError(
          f'The file {path / file} is damaged (it has {found} bytes instead of'
          f' {size}): remove {path} and {_AGAIN}.'
        )
  _check_vocabulary(path, info.vocabulary)
  if info.format == prepared_info.FIRST_FORMAT:
    _say_unchecked(path)
  return info


@functools.cache
def _say_unchecked(path: pathlib.Path) -> None:
  """Once for a folder, of which every split is loaded."""
  _logger.warning(
    '%s was written by an earlier version and has no checksums: damage to its '
    'lengths may not be seen. Prepared again in another folder, it has them.',
    path,
  )


def _read_info(path: pathlib.Path) -> prepared_info.Info:
  try:
    data = (path / INFO).read_bytes()
  except OSError as error:
    half = ' (begun there, but not finished)' if path.is_dir() else ''
    raise errors.UserError(
      f'The folder {path} holds no whole set of prepared data{half}: write one'
      ' with python -m t5x_variants.prepare_data --gin_file=gin/data/X.gin'
      f' --output={path}.'
    ) from error
  known = prepared_info.FIRST_FORMAT, prepared_info.FORMAT
  version = prepared_info.FORMAT
  with contextlib.suppress(ValueError, AttributeError):
    version = json.loads(data).get('format', version)
  if version not in known:
    raise errors.UserError(
      f'The file {path / INFO} has format {version!r} and this version of'
      f' t5x_variants reads {known[0]} and {known[1]}: {_AGAIN} into another'
      ' folder.'
    )
  try:
    return prepared_info.from_json(data)
  except ValueError as error:
    raise errors.UserError(
      f'The file {path / INFO} is damaged or was not written by prepare_data'
      f' ({error}): remove the folder and {_AGAIN}.'
    ) from error


def _size(path: pathlib.Path) -> int:
  try:
    return path.stat().st_size
  except OSError:
    return 0


def _check_vocabulary(
  path: pathlib.Path, vocabulary: prepared_info.Vocabulary
) -> None:
  try:
    model = (path / vocabulary.file).read_bytes() if vocabulary.file else b''
  except OSError:
    model = b''
  if vocabulary.hashed(model) != vocabulary.hash:
    raise errors.UserError(
      f'The file {path / (vocabulary.file or INFO)} is not the vocabulary that'
      f' the set was prepared with ({vocabulary.kind}, {vocabulary.vocab_size}'
      f' ids, SHA-256 {vocabulary.hash[:12]}): put that back, or {_AGAIN} into'
      ' another folder.'
    )


def shard_file(split: str, index: int, count: int) -> str:
  """The name of a file of chunks."""
  return f'{split}-{index:05d}-of-{count:05d}.array_record'


def lengths_file(split: str) -> str:
  """The name of the file of lengths."""
  return f'{split}.lengths'


class Chunks:
  """The chunks of one split by their number, and their lengths."""

  def __init__(
    self, folder: str | os.PathLike, info: prepared_info.Info, split: str
  ):
    if split not in info.splits:
      raise errors.UserError(
        f'The split is {split!r}; the set in {os.fspath(folder)} has'
        f' {list(info.splits)}.'
      )
    self._folder = pathlib.Path(folder).expanduser()
    self._dtype = info.dtype
    self._vocab_size = info.vocabulary.vocab_size
    self._longest = info.chunk_length
    self._shards = info.splits[split].shards
    self._ends = list(itertools.accumulate(s.examples for s in self._shards))
    self._readers: dict = {}
    # Mapped, not read: a large corpus has hundreds of millions.
    self._lengths_file = self._folder / lengths_file(split)
    lengths = np.memmap(self._lengths_file, self._dtype, 'r')
    self._lengths = lengths.view(np.ndarray)
    wanted = info.splits[split].lengths_crc32
    if wanted is not None and zlib.crc32(self._lengths.data) != wanted:
      raise self._damaged(self._lengths_file, 'its checksum is another')

  def __len__(self) -> int:
    return len(self._lengths)

  def lengths(self, numbers: np.ndarray) -> np.ndarray:
    """Tokens of each of these chunks."""
    found = self._lengths[numbers]
    wrong = found[(found < noise.MIN_CHUNK) | (found > self._longest)]
    if wrong.size:
      why = f'a chunk has {wrong[0]} tokens'
      raise self._damaged(self._lengths_file, why)
    return found

  def __getitem__(self, number: int) -> np.ndarray:
    """Tokens, int32, of a chunk."""
    number = int(number)
    shard = bisect.bisect_right(self._ends, number)
    first = self._ends[shard] - self._shards[shard].examples
    record, slot = divmod(number - first, CHUNKS_PER_RECORD)
    read = self._read(shard, record)
    last = min(number - slot + CHUNKS_PER_RECORD, self._ends[shard])
    ends = self._lengths[number - slot : last].cumsum(dtype=np.int64)
    tokens = read[ends[slot] - self._lengths[number] : ends[slot]]
    if ends[-1] != len(read) or tokens.max() >= self._vocab_size:
      file = self._folder / self._shards[shard].file
      raise self._damaged(file, 'its chunks are not those of this set')
    return tokens.astype(np.int32)

  def _read(self, shard: int, record: int) -> np.ndarray:
    """A whole record."""
    file = self._folder / self._shards[shard].file
    try:
      reader = self._readers.get(shard)
      if reader is None:
        reader = self._readers[shard] = _open(file)
      # Of a range: `read([record])` walks through the whole index.
      (data,) = reader.read(record, record + 1)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
      raise self._damaged(file, errors.reason(error)) from error
    return np.frombuffer(data, self._dtype)

  def _damaged(self, file: pathlib.Path, why: str) -> errors.UserError:
    return errors.UserError(
      f'The file {file} is damaged ({why[:200]}): remove {self._folder} and'
      f' {_AGAIN}.'
    )


def _open(path: pathlib.Path):
  from array_record.python import array_record_module

  # No reading ahead: the next chunk lies anywhere.
  return array_record_module.ArrayRecordReader(
    str(path), options='readahead_buffer_size:0', file_reader_buffer_size=32768
  )
