"""Checkpoints for google-research/t5x, written without it.

A step is a folder `checkpoint_STEP`, in which Orbax has written the same tree
as under t5x: `target` with the parameters, and `state` with the step and the
state of Adafactor for each parameter (t5x/adafactor.py). t5x cannot restore a
checkpoint for training without that state. Here it is the state before the
first gradient: v_row and v_col, or v, are 0. Arrays that Adafactor does not use
have the shape [1].
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from t5x_variants.weights import source

# t5x factors the second moment of an unscanned matrix that has at least this
# many rows and columns.
_MIN_DIM_SIZE_TO_FACTOR = 128


def write(
  folder: pathlib.Path, step: int, params: Mapping, axes: Mapping
) -> None:
  """Writes `checkpoint_STEP` into a folder.

  Args:
    folder: an existing folder.
    step: the step that t5x continues from.
    params: the nested tree of parameters, float32 numpy arrays.
    axes: a tree of the same structure with each parameter's logical axes.
  """
  names = traverse_util.flatten_dict(axes)
  states = {
    path: _param_state(np.shape(value), names[path])
    for path, value in traverse_util.flatten_dict(params).items()
  }
  tree = {
    'state': {
      'step': np.asarray(step, np.int32),
      'param_states': traverse_util.unflatten_dict(states),
    },
    'target': params,
  }
  with ocp.StandardCheckpointer() as writer:
    writer.save(folder.resolve() / f'checkpoint_{step}' / 'state', tree)


def _param_state(
  shape: source.Shape, axes: tuple[str, ...]
) -> dict[str, np.ndarray]:
  shapes: dict[str, source.Shape] = dict.fromkeys(
    ('m', 'v', 'v_col', 'v_row'), (1,)
  )
  factored = _factored(shape, axes)
  if factored is None:
    shapes['v'] = shape
  else:
    row, column = factored
    shapes['v_row'] = tuple(np.delete(shape, column))
    shapes['v_col'] = tuple(np.delete(shape, row))
  return {name: np.zeros(s, np.float32) for name, s in shapes.items()}


def _factored(
  shape: source.Shape, axes: tuple[str, ...]
) -> tuple[int, int] | None:
  """The row and column axes of a factored second moment; None: unfactored."""
  if 'layers' in axes:
    # t5x's factor rules apply: every matrix is factored, with `embed` as row.
    if len(shape) < 3:
      return None
    row = axes.index('embed')
    return row, 3 - row - axes.index('layers')
  if len(shape) < 2:
    return None
  row, column = np.argsort(shape)[-2:]
  if shape[row] < _MIN_DIM_SIZE_TO_FACTOR:
    return None
  return int(row), int(column)
