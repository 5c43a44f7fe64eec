"""Files that somebody else wrote.

A checkpoint may be damaged, or made to do harm. What it names is opened only
if it is a plain file inside the checkpoint's own folder: a path or a symbolic
link that leads elsewhere is an error, and so is a pipe, on which a read would
wait for ever.
"""

import contextlib
import json
import os
import pathlib
import re
import reprlib
import stat

from t5x_variants import errors

# Python's own limit is met deep inside of calls, where it does other harm.
_MAX_DEPTH = 100
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def short(value) -> str:
  """What to call a value of a file in a message: its `repr`, cut."""
  return _SHORT.repr(value)


@contextlib.contextmanager
def reading(path: str | os.PathLike):
  """Turns the file system's errors into a `UserError` that names `path`."""
  try:
    yield
  except errors.UserError:
    raise
  except (OSError, ValueError) as error:
    # A ValueError is a name that no file can have, or bytes that are no text.
    raise errors.UserError(
      f'The path {short(str(path))} cannot be read: {errors.reason(error)}.'
    ) from error


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of `name` in a folder, there or not.

  Raises:
    errors.UserError: it leads out of the folder.
  """
  path = folder / name
  with reading(path):
    real = os.path.realpath(path)
  if not any(pathlib.Path(real).is_relative_to(r) for r in _roots(folder)):
    raise errors.UserError(
      f'The path {short(str(path))} leads out of the folder, to '
      f'{short(real)}; copy what is meant into the folder (cp -L follows '
      'links).'
    )
  return path


def _roots(folder: pathlib.Path) -> list[pathlib.Path]:
  """Where the files of a folder may be: in it, or in its hub cache's blobs."""
  real = pathlib.Path(os.path.realpath(folder))
  if real.parent.name == 'snapshots':
    # Hugging Face's cache holds links, models--X/snapshots/REVISION/FILE, to
    # models--X/blobs/HASH.
    return [real, real.parent.parent / 'blobs']
  return [real]


def plain_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """The path of a file in a folder; None when there is none.

  Raises:
    errors.UserError: it leads out of the folder, or is not a plain file.
  """
  path = inside(folder, name)
  with reading(path):
    try:
      mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
      return None
    if not stat.S_ISREG(mode):
      raise errors.UserError(
        f'The path {short(str(path))} is not a plain file.'
      )
  return path


def check_tree(folder: pathlib.Path) -> None:
  """Checks that all in a folder, at any depth, are plain files inside it.

  Raises:
    errors.UserError: a link leads out of it, something is neither a file nor
      a folder, or a folder cannot be listed.
  """

  def fail(error: OSError):
    raise error

  with reading(folder):
    for parent, folders, names in os.walk(folder, onerror=fail):
      for name in names:
        plain_file(folder, os.path.relpath(os.path.join(parent, name), folder))
      for name in folders:
        inside(folder, os.path.relpath(os.path.join(parent, name), folder))


def read_json(path: pathlib.Path) -> dict:
  """The JSON object that a file holds.

  Raises:
    errors.UserError: it cannot be read, or holds something else.
  """
  try:
    text = path.read_text(encoding='utf-8')
    if _depth(text) > _MAX_DEPTH:
      raise ValueError(f'it is nested deeper than {_MAX_DEPTH} levels')
    content = json.loads(text)
  except OSError as error:
    raise errors.UserError(
      f'The file {path} cannot be read: {errors.reason(error)}.'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'The file {path} is not valid JSON: {errors.reason(error)}.'
    ) from error
  if not isinstance(content, dict):
    raise errors.UserError(
      f'The file {path} holds {short(content)}, not a JSON object.'
    )
  return content


def _depth(text: str) -> int:
  """How deep brackets are nested, outside of strings."""
  depth = deepest = 0
  quoted = False
  for token in re.findall(r'\\.|["\[\]{}]', text):
    if token == '"':
      quoted = not quoted
    elif not quoted:
      depth += (token in '[{') - (token in ']}')
      deepest = max(deepest, depth)
  return deepest
