"""Checkpoints of google-research/t5x, read without it.

A step is a folder `checkpoint_STEP`. Its file `checkpoint` is msgpack as flax
writes it: {'version': 3, 'optimizer': {'state': {'step': ...}, 'target':
parameters}}. A leaf is an array, or what tensorstore needs to open one of the
zarr folders beside the file, such as `target.encoder.encoder_norm.scale`; the
storage it names is that of whoever wrote it, and only its path counts. Newer
runs of t5x leave it to orbax: a folder `state` with the same target.

Nothing but the parameters is read: t5x's optimizer state stays behind.
"""

import dataclasses
import logging
import math
import operator
import pathlib
import re
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import tensorstore
from flax import serialization

from t5x_variants import errors, paths
from t5x_variants.weights import files, kinds, saved, source

_log = logging.getLogger('t5x_variants')
_FILE = 'checkpoint'
_SPEC = {'driver', 'kvstore'}
_PATIENCE = 60  # seconds, for a bucket to answer


def open_checkpoint(path: str) -> source.Source:
  """Looks into a checkpoint of t5x.

  Args:
    path: `checkpoint_STEP`, the file `checkpoint` in it, or a folder with
      several of them, of which the newest is taken; local, or a step's folder
      on gs:// in the msgpack form.

  Raises:
    errors.UserError: there is none, or what it says of itself cannot be.
  """
  given = path
  path = path.rstrip('/').removesuffix(f'/{_FILE}')
  if paths.is_remote(path) and not path.startswith('gs://'):
    raise errors.UserError(
      f'The path {path} is on storage that cannot be read; t5x checkpoints are '
      'read from local folders and from gs://.'
    )
  if not path.startswith('gs://'):
    folder = paths.folder(path)
    with files.reading(folder):
      folder = _newest(folder, given)
    files.check_tree(folder)
    if (folder / 'state').is_dir():
      found = saved.open_orbax(folder / 'state', 'target', folder)
      return dataclasses.replace(found, step=_step_of(folder.name))
    path = str(folder)
  store = _store(path)
  state = _tree(path, store)
  leaves = source.flattened(state['target'], path, _is_spec)
  return source.Source(
    where=path,
    step=_step(state['state'].get('step')),
    shapes={name: _shape(path, name, leaf) for name, leaf in leaves.items()},
    read=lambda: _read(path, store, leaves),
  )


def _step(value):
  try:
    return operator.index(value)
  except TypeError:
    return value  # `Source` says what a step is.


def _newest(folder: pathlib.Path, given: str) -> pathlib.Path:
  """The folder itself if it is a step's, else the newest step in it."""
  if _is_step(folder):
    return folder
  steps = [child for child in folder.glob('checkpoint_*') if _is_step(child)]
  if not steps:
    raise kinds.missing(given, kinds.T5X)
  newest = max(steps, key=lambda child: _step_of(child.name))
  if len(steps) > 1:
    _log.info('Taking %s, the newest of %d.', newest, len(steps))
  return files.inside(folder, newest.name)


def _is_step(folder: pathlib.Path) -> bool:
  return (folder / _FILE).is_file() or (folder / 'state').is_dir()


def _step_of(name: str) -> int:
  digits = re.search(r'(\d+)$', name)
  return int(digits[1]) if digits else 0


def _store(path: str) -> dict:
  """What tensorstore calls a folder."""
  if path.startswith('gs://'):
    bucket, _, inside = path.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  return {'driver': 'file', 'path': f'{path}/'}


def _tree(path: str, store: dict) -> Mapping:
  """The content of the msgpack file, from `optimizer` on."""
  try:
    folder = tensorstore.KvStore.open(store).result()
    found = folder.read(_FILE).result(timeout=_PATIENCE)
  except TimeoutError as error:
    raise errors.UserError(
      f'The checkpoint {path} was not reached within {_PATIENCE} seconds; copy '
      'it to a local folder (gcloud storage cp -r) and give that.'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'The file {path}/{_FILE} cannot be read: {errors.reason(error)}.'
    ) from error
  if found.state != 'value':
    raise errors.UserError(
      f"The path {path} holds no t5x checkpoint: there is no file '{_FILE}' "
      'in it.'
    )
  try:
    content = serialization.msgpack_restore(found.value)
  except Exception as error:
    # Which exception damaged bytes end in depends on the bytes.
    raise errors.UserError(
      f'The file {path}/{_FILE} is truncated or is not a msgpack file '
      f'({type(error).__name__}: {errors.reason(error)}).'
    ) from error
  version = content.get('version') if isinstance(content, Mapping) else None
  if version not in (2, 3):
    raise errors.UserError(
      f'The file {path}/{_FILE} is of version {files.short(version)} of t5x '
      'checkpoints; those that can be read are 2 and 3.'
    )
  optimizer = content.get('optimizer')
  parts = optimizer if isinstance(optimizer, Mapping) else {}
  if not all(isinstance(parts.get(k), Mapping) for k in ('target', 'state')):
    raise errors.UserError(
      f'The file {path}/{_FILE} holds no parameters: there are no '
      'optimizer/target and optimizer/state in it.'
    )
  return parts


def _is_spec(_, value) -> bool:
  return isinstance(value, Mapping) and value.keys() >= _SPEC


def _shape(path: str, name: str, leaf) -> source.Shape:
  """The shape that the msgpack file says a leaf has."""
  if isinstance(leaf, np.ndarray):
    return leaf.shape
  metadata = leaf.get('metadata') if isinstance(leaf, Mapping) else None
  shape = metadata.get('shape') if isinstance(metadata, Mapping) else None
  if not isinstance(shape, list | tuple):
    raise errors.UserError(
      f'The checkpoint {path} is damaged: its file {_FILE!r} holds neither '
      f'values nor a shape of the tensor {files.short(name)}.'
    )
  return tuple(shape)


def _read(path: str, store: dict, leaves: Mapping) -> dict[str, np.ndarray]:
  """All values; tensorstore reads them side by side."""
  tensors = {
    name: _Tensor(path, store, name, leaf)
    for name, leaf in leaves.items()
    if isinstance(leaf, Mapping)
  }
  return {
    name: tensors[name].result() if name in tensors else leaf
    for name, leaf in leaves.items()
  }


class _Tensor:
  """One zarr folder, opened; `result` waits for its values."""

  def __init__(self, path: str, store: dict, name: str, spec: Mapping):
    self._where, self._name, self._shape = path, name, _shape(path, name, spec)
    kvstore = spec['kvstore']
    inside = kvstore.get('path') if isinstance(kvstore, Mapping) else None
    # Of a bucket, what is inside of it stands one level higher.
    self._folder = inside or spec.get('path') or ''
    if not self._in_the_checkpoint():
      self._fail('that is no folder inside the checkpoint')
    kvstore = store | {'path': f'{store["path"]}{self._folder.strip("/")}/'}
    if store['driver'] == 'file':
      self._check_metadata(pathlib.Path(kvstore['path'], '.zarray'))
    self._opened = tensorstore.open({'driver': 'zarr', 'kvstore': kvstore})

  def _in_the_checkpoint(self) -> bool:
    folder = self._folder
    return isinstance(folder, str) and not (
      {'', '.', '..'} & set(folder.removesuffix('/').split('/'))
      or '\0' in folder
    )

  def _check_metadata(self, file: pathlib.Path) -> None:
    """Has Python read it first: deep JSON makes tensorstore end the process."""
    try:
      files.read_json(file)
    except errors.UserError as error:
      self._fail(str(error).removesuffix('.'), error)

  def result(self) -> np.ndarray:
    """The values, or which tensor is damaged."""
    try:
      tensor = self._opened.result()
      if tuple(tensor.shape) != self._shape:
        self._fail(
          f'its folder has shape {list(tensor.shape)}, the file '
          f"'{_FILE}' says {list(self._shape)}"
        )
      self._check_chunks(tensor)
      return tensor.read().result()
    except ValueError as error:
      if isinstance(error, errors.UserError):
        raise
      self._fail(errors.reason(error), error)

  def _check_chunks(self, tensor) -> None:
    chunks = tensor.chunk_layout.read_chunk.shape
    if any(c > max(s, 1) for c, s in zip(chunks, tensor.shape, strict=True)):
      # tensorstore would ask for that much memory, and end the process.
      self._fail(
        f'its files hold {list(chunks)} values each, more than the '
        f'{list(tensor.shape)} it has'
      )
    if tensor.spec().to_json()['metadata'].get('fill_value') is not None:
      return  # Then files that would hold nothing else are not written.
    # A file that is missing would be read as zeros.
    grid = [math.ceil(s / c) for s, c in zip(tensor.shape, chunks, strict=True)]
    missing = math.prod(grid) - sum(
      _is_chunk(key, grid) for key in tensor.kvstore.list().result()
    )
    if missing:
      self._fail(f'{missing} of its {math.prod(grid)} files are missing')

  def _fail(self, reason: str, cause: Exception | None = None) -> NoReturn:
    raise errors.UserError(
      f'The tensor {self._name} of {self._where} cannot be read '
      f'({files.short(self._folder)}): {reason}; copy the checkpoint again.'
    ) from cause


def _is_chunk(key: bytes, grid: list[int]) -> bool:
  """Whether a file of a zarr folder is one of the grid's, such as b'0.1'."""
  parts = re.split(rb'[./]', key)
  return len(parts) == len(grid) and all(
    part.isdigit() and int(part) < count
    for part, count in zip(parts, grid, strict=True)
  )
