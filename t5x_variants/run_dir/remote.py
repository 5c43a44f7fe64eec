"""Files on cloud storage, `gs://`, that are appended to.

An object in a bucket cannot be appended to. What a run appends to is written
to a local folder instead and copied as a whole, now and then.
"""

import pathlib
import shutil
import tempfile
import time

from etils import epath

# Seconds between two copies.
PERIOD = 30.0


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
