"""Paths of the file system and of cloud storage (`gs://`)."""

import contextlib
import os
import pathlib
import secrets

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is a URL of cloud storage."""
  return '://' in os.fspath(path)


def folder(path: str | os.PathLike) -> pathlib.Path | epath.Path:
  """A folder of the file system, absolute, or of a bucket."""
  if is_remote(path):
    return epath.Path(path)
  return pathlib.Path(os.path.abspath(os.path.expanduser(path)))


def write(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file so that a reader finds the old content or the new one.

  Args:
    path: the file, which several processes may write at once.
    content: bytes, or text to be stored as UTF-8.

  Raises:
    OSError: it cannot be written; the old one is left as it was.
  """
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):
    epath.Path(path).write_bytes(content)  # An object appears as a whole.
    return
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
  try:
    partial.write_bytes(content)
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise
