"""Folders on cloud storage, `gs://`: paths, and files that are appended to.

An object in a bucket cannot be appended to. What a run appends to is written
to a local folder instead and copied as a whole, now and then.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time

from etils import epath

# Seconds between two copies.
PERIOD = 30.0


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is a URL of cloud storage."""
  return '://' in os.fspath(path)


def folder(path: str | os.PathLike) -> pathlib.Path | epath.Path:
  """A folder of the file system, absolute, or of a bucket."""
  if is_remote(path):
    return epath.Path(path)
  return pathlib.Path(os.path.abspath(os.path.expanduser(path)))


def write_text(path: pathlib.Path | epath.Path, text: str) -> None:
  """Writes a file so that a reader finds the old text or the new one.

  Raises:
    OSError: it cannot be written; the old one is left as it was.
  """
  if is_remote(path):
    path.write_text(text)  # An object appears as a whole.
    return
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    partial.write_text(text, encoding='utf-8')
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


class Mirror:
  """A local folder whose files are copied to another one."""

  def __init__(self, target: epath.Path):
    """Makes an empty local folder for a target that exists."""
    self.local = pathlib.Path(tempfile.mkdtemp(prefix='t5x_variants-records-'))
    self._target = target
    self._copied = time.monotonic()

  def fetch(self, name: str) -> None:
    """Copies one file from the target, if it is there."""
    if (self._target / name).exists():
      (self.local / name).write_bytes((self._target / name).read_bytes())

  def copy(self, *, at_once: bool = True) -> None:
    """Copies all files to the target; else only if `PERIOD` has passed."""
    if at_once or time.monotonic() - self._copied > PERIOD:
      for path in filter(pathlib.Path.is_file, self.local.iterdir()):
        (self._target / path.name).write_bytes(path.read_bytes())
      self._copied = time.monotonic()

  def close(self) -> None:
    """Copies and removes the local folder."""
    self.copy()
    shutil.rmtree(self.local, ignore_errors=True)
