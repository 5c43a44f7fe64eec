"""Documents out of text files, block by block, without TensorFlow.

A file is read from the front in blocks of at most 64 KiB of whole documents;
where the next block begins is the only state, so that reading can stop and go
on at any block. Files may be gzip compressed (`.gz`) and may lie on cloud
storage (`gs://`).

What counts as a document is the format:

  blank_line  text between blank lines (spaces and tabs count as blank)
  line        each line
  file        the whole file
  json        the field of the JSON object on each line; or several fields,
              joined by SEPARATOR

A text document longer than a block is cut into pieces at a line end or else
at a space, so that a file without any boundary streams as well; a JSON line
may take up to 64 MiB.

What cannot be used is skipped and counted, never mended: an empty file; a
binary one (a NUL byte in its first block); a document with a NUL or with
invalid UTF-8; a JSON line that does not parse or lacks a string in a field;
the rest of a truncated or damaged gzip file.
"""

import collections
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator

BLOCK = 1 << 16
LONGEST_LINE = 1 << 26
# Between the fields of one document; no text has it (ASCII's unit separator).
SEPARATOR = '\x1f'
FORMATS = ('blank_line', 'line', 'file', 'json')
_BLANK_LINE = re.compile(rb'\n[ \t\r]*\n\s*')
_BOM = b'\xef\xbb\xbf'


def local_open(path: str):
  """Opens a local file for reading bytes."""
  return open(path, 'rb')


class Stream:
  """One file, read from the front with the bytes that were read too far.

  Attributes:
    path: of the file.
    offset: of the first byte not yet handed out, after decompression.
    damaged: what is wrong with a gzip file that ended early, or ''.
  """

  def __init__(self, path: str, offset: int = 0, opener: Callable = local_open):
    self.path, self.offset, self.damaged = path, 0, ''
    self._raw: io.BufferedIOBase = io.BytesIO()
    self._file: io.BufferedIOBase = self._raw
    self._raw = self._file = opener(path)
    if path.endswith('.gz'):
      buffered = io.BufferedReader(_Raw(self._file), BLOCK)
      self._file = gzip.GzipFile(fileobj=buffered, mode='rb')
    # What a damaged file gives before the damage must not be lost with it.
    self._read = getattr(self._file, 'read1', self._file.read)
    self._ahead = b''
    if offset and self._file is self._raw:
      self._file.seek(offset)
      self.offset = offset
    while self.offset < offset and self.peek(min(offset - self.offset, BLOCK)):
      self.take(min(offset - self.offset, BLOCK))

  def peek(self, size: int) -> bytes:
    """The next bytes: `size` of them, or all that are left."""
    while len(self._ahead) < size and not self.damaged:
      try:
        more = self._read(size - len(self._ahead))
      except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        self.damaged = str(error)
        break
      if not more:
        break
      self._ahead += more
    return self._ahead[:size]

  def take(self, size: int) -> None:
    """Moves on by so many of the bytes seen last."""
    self._ahead = self._ahead[size:]
    self.offset += size

  def __del__(self):
    self.close()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
    self._raw.close()


class _Raw(io.RawIOBase):
  """What io.BufferedReader needs of a file that only knows read(size)."""

  def __init__(self, file):
    self._source = file

  def readable(self):
    return True

  def readinto(self, into):
    data = self._source.read(len(into))
    into[: len(data)] = data
    return len(data)


def _end_of_documents(data: bytes, text_format: str) -> int:
  """How much of a full block is whole documents; 0 when none ends in it."""
  if text_format == 'blank_line':
    end = 0
    for boundary in _BLANK_LINE.finditer(data):
      end = boundary.end()
    return end
  if text_format in ('line', 'json'):
    return data.rfind(b'\n') + 1
  return 0


def _end_of_piece(data: bytes) -> int:
  """Where to cut a document that is longer than a block."""
  for separator in (b'\n', b' '):
    if end := data.rfind(separator) + 1:
      return end
  end = len(data)
  # Not within a character: bytes 10xxxxxx continue one (at most three do).
  while end > len(data) - 4 and end > 1 and data[end - 1] & 0xC0 == 0x80:
    end -= 1
  return end - 1 if data[end - 1] >= 0xC0 and end > 1 else end


def _next_block(stream: Stream, text_format: str) -> bytes:
  """The next whole documents, b'' at the end of the file."""
  size = BLOCK
  while True:
    data = stream.peek(size)
    end = len(data)
    if len(data) == size:
      end = _end_of_documents(data, text_format)
      if not end and text_format == 'json' and size < LONGEST_LINE:
        size *= 4
        continue
      end = end or _end_of_piece(data)
    stream.take(end)
    return data[:end]


def _split(block: bytes, text_format: str) -> list[bytes]:
  if text_format in ('line', 'json'):
    return block.split(b'\n')
  if text_format == 'blank_line':
    return _BLANK_LINE.split(block)
  return [block]


def _text(piece: bytes, text_format: str, field) -> tuple[bytes, str]:
  """The document in a piece of a file, or b'' and why there is none."""
  if text_format == 'json':
    fields = (field,) if isinstance(field, str) else field
    try:
      found = json.loads(piece)
      texts = []
      for name in fields:
        if name not in found or not isinstance(found, dict):
          return b'', f'JSON lines without the field {name!r}'
        if not isinstance(found[name], str):
          return b'', f'JSON lines whose {name!r} is no string'
        texts.append(found[name])
      if len(texts) > 1 and any(SEPARATOR in text for text in texts):
        return b'', 'JSON lines with the character U+001F'
      piece = SEPARATOR.join(texts).encode('utf-8')
    except UnicodeError:
      return b'', 'documents of invalid UTF-8'
    except (ValueError, RecursionError):
      return b'', 'lines that are no JSON'
    except TypeError:
      return b'', f'JSON lines without the field {fields[0]!r}'
  else:
    try:
      piece.decode('utf-8')
    except UnicodeDecodeError:
      return b'', 'documents of invalid UTF-8'
  if b'\0' in piece:
    return b'', 'documents with a NUL byte'
  return piece.replace(b'\r\n', b'\n').strip(), ''


def read_block(
  stream: Stream, text_format: str, field, skipped: collections.Counter
) -> list[bytes] | None:
  """The documents of the next block, None at the end of the file.

  Args:
    stream: where to read on.
    text_format: one of FORMATS.
    field: of the JSON object that holds the text; or several.
    skipped: counts what is skipped, by reason.

  Returns:
    Documents in UTF-8, none of them empty.
  """
  first = stream.offset == 0
  block = _next_block(stream, text_format)
  if not block:
    if stream.damaged:
      skipped[f'damaged gzip file {stream.path} ({stream.damaged})'] += 1
    elif first:
      skipped['empty files'] += 1
    return None
  if first and b'\0' in block:
    skipped['binary files'] += 1
    return None
  if first and block.startswith(_BOM):
    block = block[len(_BOM) :]
  documents = []
  for piece in _split(block, text_format):
    if piece.strip():
      document, reason = _text(piece, text_format, field)
      if reason:
        skipped[reason] += 1
      elif document:
        documents.append(document)
  return documents


def read_file(
  path: str,
  text_format: str,
  field,
  skipped: collections.Counter,
  opener: Callable = local_open,
) -> Iterator[list[bytes]]:
  """All blocks of a file's documents, in order."""
  stream = Stream(path, 0, opener)
  try:
    while True:
      documents = read_block(stream, text_format, field, skipped)
      if documents is None:
        return
      yield documents
  finally:
    stream.close()


def numbered(
  path: str, field, opener: Callable = local_open
) -> Iterator[tuple[int, bytes]]:
  """The documents of a file of JSON lines with their lines' numbers, from 1."""
  stream, first = Stream(path, 0, opener), 1
  try:
    while block := _next_block(stream, 'json'):
      block = block.removeprefix(_BOM) if first == 1 else block
      for line, piece in enumerate(block.split(b'\n'), first):
        document, _ = _text(piece, 'json', field)
        if document:
          yield line, document
      first += block.count(b'\n')
  finally:
    stream.close()


def uniform_hash(document: bytes) -> int:
  """64 bits that depend on the document alone, today and on any machine."""
  return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest())
