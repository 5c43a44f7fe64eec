"""Our own checkpoints as weights: read from a run, written by an import.

An import has the form of a run directory, `config.gin` and
`checkpoints/STEP/state`, with nothing but the parameters in the state: a run
starts from it by INITIAL_CHECKPOINT_PATH, and what reads runs reads it.
"""

import dataclasses
import functools
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import traverse_util

from t5x_variants import errors, paths
from t5x_variants.run_dir import checksums, layout
from t5x_variants.weights import files, kinds, source


def open_checkpoint(path: str | os.PathLike) -> source.Source:
  """The weights of a run directory, or of one step of it.

  Args:
    path: a run directory or an import (its newest checkpoint is taken), or a
      step's folder, `RUN/checkpoints/STEP`.

  Raises:
    errors.UserError: there is no checkpoint of ours, or its files cannot be
      read, or are not what their checksums say.
  """
  if paths.is_remote(path):
    raise errors.UserError(
      f'The checkpoint {path} is on remote storage; copy it to a local folder '
      'first.'
    )
  folder = paths.folder(path)
  with files.reading(folder):
    if (folder / 'state').is_dir() and folder.name.isdecimal():
      step, run = int(folder.name), folder.parent.parent
    elif (folder / 'checkpoints').is_dir():
      run = folder
      step, folder = layout.newest_checkpoint(run)
    else:
      raise kinds.not_ours(path)
  # It says which variant the weights are of.
  with files.reading(run / 'config.gin'):
    variant = variant_of(layout.settings(run))
  with files.reading(folder):
    damage = checksums.damage_of_step(folder)
  if damage:
    raise errors.UserError(
      f'The checkpoint {folder} is damaged: {damage}. Name the folder of '
      'another step, RUN/checkpoints/STEP.'
    )
  found = open_orbax(folder / 'state', 'params', folder)
  return dataclasses.replace(found, step=step, variant=variant)


def variant_of(settings: Mapping[str, str]) -> str | None:
  """`layout.variant` with the version of a rational: 'Rational (version B)'.

  The versions' coefficients have the same shapes and mean other functions.
  """
  name = layout.variant(settings)
  for key, value in settings.items():
    version = value.strip('\'"')
    if key.endswith('rational.rational.version') and version != 'A':
      return f'{name} (version {version})'
  return name


def open_orbax(
  state: pathlib.Path, key: str, folder: pathlib.Path
) -> source.Source:
  """The parameters at `key` of a tree that orbax wrote.

  Args:
    state: the folder that orbax wrote.
    key: a key of the tree's root.
    folder: the checkpoint's folder, which `state` is in.

  Raises:
    errors.UserError: it cannot be read, or holds no parameters.
  """
  files.check_tree(folder)
  if (state / '_METADATA').is_file():
    _guarded(folder, files.read_json, state / '_METADATA')
  _guarded(folder, _check_database, state)
  tree = _guarded(folder, _metadata, state)
  if not isinstance(tree, Mapping) or key not in tree:
    raise errors.UserError(
      f'The checkpoint {folder} has no parameters: {state} holds no {key!r}.'
    )
  flat = source.flattened(tree[key], str(folder))
  return source.Source(
    where=str(folder),
    step=0,
    shapes={
      name: _guarded(folder, _shape, leaf) for name, leaf in flat.items()
    },
    read=functools.partial(_guarded, folder, _read, state, key, tree[key]),
  )


def _check_database(state: pathlib.Path, key: str | None = None) -> None:
  """Reads orbax's database: its list of entries, and those of a key's arrays.

  This comes before orbax reads, because orbax starts all reads at once, and
  after an error Python prints a traceback for each of the others.

  Raises:
    ValueError: a file is damaged or missing.
  """
  if not (state / 'manifest.ocdbt').is_file():
    return  # Then each array has a folder of its own.
  base = {'driver': 'file', 'path': f'{state}/'}
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  for name in store.list().result():
    if key is not None and name.startswith(f'{key}.'.encode()):
      store.read(name).result()


def _metadata(state: pathlib.Path):
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.metadata(state).item_metadata
  if found is None:
    raise ValueError('its description of what it holds is damaged or missing')
  return found.tree


def _shape(leaf) -> source.Shape:
  """The shape of one array, which a file of orbax describes."""
  shape = tuple(leaf.shape)
  chunk = leaf.storage.chunk_shape if leaf.storage else None
  if chunk and any(c > max(s, 1) for c, s in zip(chunk, shape, strict=True)):
    # tensorstore would ask for that much memory, and end the process.
    raise ValueError(f'an array of shape {shape} has chunks of {tuple(chunk)}')
  return shape


def _read(state: pathlib.Path, key: str, tree) -> dict[str, np.ndarray]:
  _check_database(state, key)
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
  )
  wanted = ocp.args.PyTreeRestore(
    {key: shapes}, {key: as_numpy}, partial_restore=True
  )
  with ocp.PyTreeCheckpointer() as reader:
    restored = reader.restore(state, args=wanted)[key]
  return traverse_util.flatten_dict(restored, sep='/')


def _guarded(folder, function, *args):
  try:
    return function(*args)
  except Exception as error:
    # Which exception a damaged file ends in depends on the file.
    raise errors.UserError(
      f'The checkpoint {folder} cannot be read: {errors.reason(error)}.'
    ) from error


def check_output(path: str | None, flag: str = '--output') -> pathlib.Path:
  """The folder a command is to make; it must be new and local.

  Raises:
    errors.UserError: none given, remote, or there already.
  """
  if not path:
    raise errors.UserError(
      f'The flag {flag}=DIR is missing: it names the folder to write.'
    )
  if paths.is_remote(path):
    raise errors.UserError(
      f'The folder {flag}={path} is on remote storage; write to a local folder '
      'and copy it there.'
    )
  folder = paths.folder(path)
  with files.reading(folder):
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
  if taken:
    raise errors.UserError(
      f'The folder {flag}={path} is there already; choose a new one, or delete '
      'it first.'
    )
  return folder


def write_folder(folder: pathlib.Path, write) -> None:
  """Makes `folder` of what `write(temporary folder)` puts there, or nothing.

  Raises:
    errors.UserError: it cannot be written.
  """
  # A name of its own: nothing that is there is touched.
  partial = folder.with_name(f'{folder.name}.partial-{secrets.token_hex(4)}')
  try:
    partial.mkdir(parents=True)
    write(partial)
    os.replace(partial, folder)
  except BaseException as error:
    shutil.rmtree(partial, ignore_errors=True)
    # Orbax and tensorstore report a full disk as a ValueError.
    ours = isinstance(error, errors.UserError)
    if ours or not isinstance(error, (OSError, ValueError)):
      raise
    raise errors.UserError(
      f'The folder {folder} cannot be written: {errors.reason(error)}.'
    ) from error


def write(
  folder: pathlib.Path, step: int, params: Mapping, config: str
) -> None:
  """Writes parameters as a run directory that holds nothing else.

  Args:
    folder: see `check_output`.
    step: the step the weights are of.
    params: the nested tree, numpy.
    config: text of config.gin.
  """

  def into(partial: pathlib.Path) -> None:
    (partial / 'config.gin').write_text(config, encoding='utf-8')
    with ocp.StandardCheckpointer() as writer:
      writer.save(
        partial / f'checkpoints/{step}/state',
        {'params': params, 'step': np.asarray(step, np.int32)},
      )

  write_folder(folder, into)
