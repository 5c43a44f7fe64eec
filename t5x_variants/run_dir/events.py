"""Files that are appended to, and TensorBoard's event file as one of them."""

import io
import logging
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from t5x_variants import errors

_log = logging.getLogger('t5x_variants')


class Appended:
  """A file to which whole records are appended.

  What cannot be written is kept and tried again with what follows, so that a
  disk that is full for a moment costs nothing and no record is ever cut. The
  file is made with its first record.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file: io.FileIO | None = None
    self._size = 0
    self._pending = b''

  def add(self, data: bytes) -> OSError | None:
    """Appends a record; why it could not be written yet, if so."""
    self._pending += data
    try:
      self.flush()
    except OSError as error:
      return error
    return None

  def flush(self) -> None:
    """Writes what is pending, all of it or nothing.

    Raises:
      OSError: it could not be written.
    """
    if not self._pending:
      return
    if self._file is None:
      self._file = self._path.open('ab', buffering=0)
      self._size = self._path.stat().st_size
    written = 0
    try:
      while written < len(self._pending):
        written += self._file.write(self._pending[written:])
    except OSError:
      os.ftruncate(self._file.fileno(), self._size)
      raise
    self._size += written
    self._pending = b''

  def close(self) -> None:
    """Closes the file; what is still pending is lost."""
    if self._file is not None:
      self._file.close()


class Events:
  """TensorBoard's event file, written at once; a failure is said once.

  TensorFlow's own writer costs 0.7 GiB, and that of tensorboardX waits for
  ever when its thread has died of a full disk: here its events are framed by
  the same function and appended like the records.
  """

  def __init__(self, folder: pathlib.Path, first_written: int):
    """Names a file whose events replace those from `first_written` on."""
    # Two starts may fall into one second.
    name = f'events.out.tfevents.{time.time_ns() // 10**9:010d}'
    name += f'.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}'
    self._file = Appended(folder / name)
    self._failed = False
    self._first_written: int | None = first_written

  def scalars(self, step: int, split: str, values: Mapping) -> None:
    """Adds numbers as `split/name`."""
    from tensorboardX import summary

    for name, value in values.items():
      self._add(step=step, summary=summary.scalar(f'{split}/{name}', value))

  def text(self, name: str, text: str) -> None:
    """Adds a text."""
    from tensorboardX import summary

    self._add(step=0, summary=summary.text(name, f'```\n{text}\n```'))

  def _add(self, **fields) -> None:
    from tensorboardX.proto import event_pb2

    if self._first_written is not None:
      first, self._first_written = self._first_written, None
      self._add(file_version='brain.Event:2')
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(step=first, session_log=start)
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._check(self._file.add(_framed(event.SerializeToString())))

  def flush(self) -> None:
    """Tries once more to write what is pending."""
    self._check(self._file.add(b''))

  def _check(self, error: OSError | None) -> None:
    if error and not self._failed:
      _log.warning(
        'TensorBoard events cannot be written (%s); they are kept in memory, '
        'and metrics.jsonl has all records.',
        errors.reason(error),
      )
    self._failed = error is not None

  def close(self) -> None:
    """Closes the file; what could not be written is lost."""
    self.flush()
    self._file.close()


def _framed(data: bytes) -> bytes:
  """A record of a TFRecord file: length, checksum, data, checksum."""
  from tensorboardX.record_writer import masked_crc32c

  length = struct.pack('<Q', len(data))
  checks = [struct.pack('<I', masked_crc32c(part)) for part in (length, data)]
  return length + checks[0] + data + checks[1]
