"""Checkpoints of google-research/t5x, read without it.

A step is a folder `checkpoint_STEP`. Its file `checkpoint` is msgpack as flax
writes it: {'version': 3, 'optimizer': {'state': {'step': ...}, 'target':
parameters}}. A leaf is an array, or what tensorstore needs to open one of the
zarr folders beside the file, such as `target.encoder.encoder_norm.scale`; the
storage it names is that of whoever wrote it, and only its path counts. Newer
runs of t5x leave it to orbax: a folder `state` with the same target.

Nothing but the parameters is read: t5x's optimizer state stays behind.
"""

import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping

import jax.numpy as jnp
import msgpack
import numpy as np
import tensorstore
from flax import serialization, traverse_util

from t5x_variants import errors
from t5x_variants.weights import saved, source

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
    errors.UserError: there is none, or its msgpack is damaged.
  """
  path = path.rstrip('/').removesuffix(f'/{_FILE}')
  if '://' in path and not path.startswith('gs://'):
    raise errors.UserError(
      f'{path}: t5x checkpoints are read from local folders and from gs://.'
    )
  if not path.startswith('gs://'):
    folder = _newest(pathlib.Path(os.path.abspath(os.path.expanduser(path))))
    if (folder / 'state').is_dir():
      found = saved.open_orbax(folder / 'state', 'target', folder)
      return source.Source(
        found.where, _step_of(folder.name), found.shapes, found.read
      )
    path = str(folder)
  store = _store(path)
  tree = _tree(path, store)
  leaves = _leaves(tree['target'])
  return source.Source(
    where=path,
    step=int(np.asarray(tree['state']['step'])),
    shapes={name: _shape(leaf) for name, leaf in leaves.items()},
    read=lambda: _read(path, store, leaves),
  )


def _newest(folder: pathlib.Path) -> pathlib.Path:
  """The folder itself if it is a step's, else the newest step in it."""
  if (folder / _FILE).is_file() or (folder / 'state').is_dir():
    return folder
  steps = sorted(
    (child for child in folder.glob('checkpoint_*') if child.is_dir()),
    key=lambda child: _step_of(child.name),
  )
  if not steps:
    what = 'holds no t5x checkpoint' if folder.is_dir() else 'is no folder'
    raise errors.UserError(
      f'{folder} {what}: give a folder such as .../checkpoint_1000000, in '
      "which lie the file 'checkpoint' and a folder for each tensor."
    )
  if len(steps) > 1:
    _log.info('Taking %s, the newest of %d.', steps[-1], len(steps))
  return _newest(steps[-1])


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
    files = tensorstore.KvStore.open(store).result()
    found = files.read(_FILE).result(timeout=_PATIENCE)
  except TimeoutError as error:
    raise errors.UserError(
      f'{path} was not reached within {_PATIENCE} seconds; copy it to a local '
      'folder (gcloud storage cp -r) and give that.'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'{path}/{_FILE} cannot be read: {_short(error)}'
    ) from error
  if found.state != 'value':
    raise errors.UserError(
      f"{path} holds no t5x checkpoint: there is no file '{_FILE}' in it."
    )
  try:
    content = serialization.msgpack_restore(found.value)
  except (ValueError, msgpack.UnpackException, TypeError) as error:
    raise errors.UserError(
      f'{path}/{_FILE} is truncated or no msgpack file: {_short(error)}'
    ) from error
  version = content.get('version') if isinstance(content, Mapping) else None
  if version not in (2, 3):
    raise errors.UserError(
      f'{path}/{_FILE} is of version {version!r} of t5x checkpoints; those '
      'that can be read are 2 and 3.'
    )
  state = content.get('optimizer')
  if not isinstance(state, Mapping) or not {'target', 'state'} <= state.keys():
    raise errors.UserError(
      f'{path}/{_FILE} holds no parameters: there is no optimizer/target in it.'
    )
  return state


def _leaves(target: Mapping) -> dict:
  return traverse_util.flatten_dict(
    target, sep='/', is_leaf=lambda _, value: set(value) >= _SPEC
  )


def _shape(leaf) -> source.Shape:
  if isinstance(leaf, Mapping):
    return tuple(leaf.get('metadata', {}).get('shape', ()))
  return tuple(np.shape(leaf))


def _read(path: str, store: dict, leaves: Mapping) -> dict[str, np.ndarray]:
  """All values; tensorstore reads them side by side."""
  futures = {
    name: _Tensor(path, store, name, leaf)
    for name, leaf in leaves.items()
    if isinstance(leaf, Mapping)
  }
  return {
    name: futures[name].result() if name in futures else np.asarray(leaf)
    for name, leaf in leaves.items()
  }


class _Tensor:
  """One zarr folder, opened; `result` waits for its values."""

  def __init__(self, path: str, store: dict, name: str, spec: Mapping):
    inside = (spec['kvstore'].get('path') or spec.get('path', '')).strip('/')
    self._where, self._name, self._shape = path, name, _shape(spec)
    self._folder = inside
    self._opened = tensorstore.open(
      {
        'driver': 'zarr',
        'kvstore': store | {'path': f'{store["path"]}{inside}/'},
      }
    )

  def result(self) -> np.ndarray:
    """The values, or which tensor is damaged."""
    try:
      tensor = self._opened.result()
      if tuple(tensor.shape) != self._shape:
        self._fail(
          f'its folder has shape {list(tensor.shape)}, the file '
          f"'{_FILE}' says {list(self._shape)}"
        )
      self._check_complete(tensor)
      values = tensor.read().result()
    except ValueError as error:
      if isinstance(error, errors.UserError):
        raise
      self._fail(_short(error), error)
    return np.asarray(values, jnp.float32)

  def _check_complete(self, tensor) -> None:
    """A file that is missing would be read as zeros."""
    metadata = tensor.spec().to_json()['metadata']
    if metadata.get('fill_value') is not None:
      return  # Then chunks that hold nothing else are not written.
    expected = math.prod(
      math.ceil(size / chunk)
      for size, chunk in zip(tensor.shape, metadata['chunks'], strict=True)
    )
    found = [
      key for key in tensor.kvstore.list().result() if b'.zarray' not in key
    ]
    if len(found) < expected:
      self._fail(f'{expected - len(found)} of its {expected} files are missing')

  def _fail(self, reason: str, cause: Exception | None = None):
    raise errors.UserError(
      f'The tensor {self._name} of {self._where} cannot be read '
      f'({self._folder}): {reason}. Copy the checkpoint again.'
    ) from cause


def _short(error: Exception) -> str:
  """A library's message without the specification behind it."""
  return ' '.join(str(error).split(' [')[0].split())[:300]
