"""Checksums of a folder's files: whether what is read is what was written.

`checksums.json` holds the size and the CRC-32 of every file below a folder,
and the CRC-32 of that list itself. One flipped bit anywhere is found.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable

from t5x_variants import paths

NAME = 'checksums.json'
# The folder of a checkpoint that has it.
ITEM = 'checksums'
_BLOCK = 1 << 20


def of_file(path: pathlib.Path) -> tuple[int, int]:
  """The size in bytes and the CRC-32 of a file."""
  size = crc = 0
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      size += len(block)
      crc = zlib.crc32(block, crc)
  return size, crc


def write(
  target: pathlib.Path,
  folder: pathlib.Path,
  include: Callable[[str], bool],
) -> None:
  """Writes the checksums of the files below `folder` into `target`.

  Args:
    target: the folder that gets `checksums.json`.
    folder: where the files are.
    include: takes a file's path relative to `folder`, with '/'; whether its
      checksum is kept.
  """
  files = {
    name: of_file(path)
    for path in sorted(folder.rglob('*'))
    if path.is_file() and include(name := path.relative_to(folder).as_posix())
  }
  content = {'files': files, 'check': _check(files)}
  (target / NAME).write_text(json.dumps(content), encoding='utf-8')


def damage(
  target: pathlib.Path, folder: pathlib.Path, part: int = 0, parts: int = 1
) -> str:
  """What is wrong with the files that `write` has seen; '' if nothing is.

  Args:
    target: the folder that has `checksums.json`.
    folder: where the files are.
    part: which of `parts` equal parts of the files is read.
    parts: into how many parts the files are divided.

  Raises:
    OSError: a file that exists cannot be read, which proves no damage.
  """
  if not (target / NAME).exists():
    return f'{NAME} is missing'
  try:
    content = json.loads((target / NAME).read_text(encoding='utf-8'))
    files = content['files']
    whole = content['check'] == _check(files)
  except (ValueError, TypeError, KeyError):
    whole = False
  if not whole:
    return f'{NAME} is damaged'
  for name in sorted(files)[part::parts]:
    path = folder / name
    if not path.is_file():
      return f'{name} is missing'
    if list(of_file(path)) != list(files[name]):
      return f'{name} differs from its checksum'
  return ''


def damage_of_step(
  step_folder: str | os.PathLike, part: int = 0, parts: int = 1
) -> str:
  """What is wrong with a checkpoint of a run; '' if nothing is known.

  Args:
    step_folder: `RUN/checkpoints/STEP`. In a bucket, and without the folder
      `checksums`, as an import is, there is nothing to compare with.
    part: see `damage`.
    parts: see `damage`.

  Raises:
    OSError: a file that exists cannot be read, which proves no damage.
  """
  if paths.is_remote(step_folder):
    return ''
  folder = pathlib.Path(step_folder)
  if not (folder / ITEM).is_dir():
    return ''
  return damage(folder / ITEM, folder, part, parts)


def _check(files: dict) -> int:
  return zlib.crc32(json.dumps(files, sort_keys=True).encode())
