"""One training process group in a run directory at a time.

In a file system the lock is an flock on the file `lock`: the kernel frees it
when the process ends, however that happens. A bucket has no such locks. There
the holder renews the object `lock` every RENEWED seconds, one that was not
renewed for EXPIRES seconds belongs to the dead, and a start waits for one or
the other. Two starts in a bucket within the same second may both win: the rule
protects against a run that is forgotten, not against a race.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO

from etils import epath

from t5x_variants import errors, logs, paths

RENEWED = 20.0
EXPIRES = 60.0
_NAME = 'lock'


@contextlib.contextmanager
def held(folder: pathlib.Path | epath.Path) -> Iterator[None]:
  """A context in which no other process group trains in `folder`.

  Raises:
    errors.UserError: another one does; the sentence names it.
  """
  if paths.is_remote(folder):
    with _held_in_bucket(folder / _NAME):
      yield
    return
  with _locked(folder) as file:
    # Who holds it is for a sentence; on a full disk that is left out.
    with contextlib.suppress(OSError):
      os.truncate(file.fileno(), 0)
      os.write(file.fileno(), _mine().encode())
    try:
      yield
    finally:
      # While it is locked: who waits for this file looks for its name again.
      (folder / _NAME).unlink(missing_ok=True)


def _locked(folder: pathlib.Path) -> IO[str]:
  """The file `lock`, open and locked.

  Raises:
    errors.UserError: it is locked.
  """
  path = folder / _NAME
  while True:
    file = path.open('a+', encoding='utf-8')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      found = _read(file.read())
      file.close()
      raise _in_use(folder, found) from error
    except OSError as error:
      logs.say(
        f'{folder} is on a file system without locks '
        f'({errors.reason(error)}): a second run in it would not be noticed.'
      )
      return file
    # The one before may have removed the name between the two calls.
    with contextlib.suppress(FileNotFoundError):
      if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
        return file
    file.close()


@contextlib.contextmanager
def _held_in_bucket(path: epath.Path) -> Iterator[None]:
  _wait_for(path)
  path.write_text(_mine())
  ended = threading.Event()

  def renew() -> None:
    while not ended.wait(RENEWED):
      # A bucket that is not reached for a while is tried again.
      with contextlib.suppress(Exception):
        path.write_text(_mine())

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    with contextlib.suppress(Exception):
      path.unlink()


def _wait_for(path: epath.Path) -> None:
  """Returns when nobody holds the lock in a bucket, or refuses."""
  begun = time.monotonic()
  first = _read(path.read_text()) if path.exists() else None
  if first is not None:
    logs.say(
      f'{path} is of process {first.get("pid")} on {first.get("host")}: '
      f'looking for up to {EXPIRES:.0f} s whether it is still there.'
    )
  while first is not None and time.monotonic() - begun < EXPIRES:
    time.sleep(min(1.0, EXPIRES / 10))
    now = _read(path.read_text()) if path.exists() else None
    if now is None:
      return
    # One that is just being written has no text yet.
    if now and now != first:
      raise _in_use(path.parent, now)


def _mine() -> str:
  return json.dumps(
    {'host': socket.gethostname(), 'pid': os.getpid(), 'time': time.time()}
  )


def _read(text: str) -> dict:
  """Who holds the lock; {} where the text does not say."""
  with contextlib.suppress(ValueError):
    found = json.loads(text)
    if isinstance(found, dict):
      return found
  return {}


def _in_use(folder, holder: dict) -> errors.UserError:
  who = 'another process'
  if holder:
    who = f'process {holder.get("pid")} on {holder.get("host")}'
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
      begun = time.localtime(holder.get('time'))
      who += f' (since {time.strftime("%Y-%m-%d %H:%M:%S", begun)})'
  return errors.UserError(
    f'MODEL_DIR {folder} is in use: {who} trains there. Wait until it has '
    'ended, or stop it, or give this run another MODEL_DIR.'
  )
