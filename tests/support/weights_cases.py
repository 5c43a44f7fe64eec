"""Random weights, and t5x's own format written without it."""

import pathlib

import numpy as np
import tensorstore
from flax import serialization, traverse_util

from t5x_variants.weights import matching


def random_values(shapes, seed=0):
  """Random parameters of a tree of shapes, flat."""
  generator = np.random.default_rng(seed)
  return {
    name: generator.normal(scale=0.3, size=shape).astype(np.float32)
    for name, shape in matching.shapes_of(shapes).items()
  }


def write_t5x(
  folder, values, *, step=7, remote=False, inside=(), dtype='float32'
):
  """A step as t5x writes it, from the description of the format.

  Args:
    folder: where `checkpoint_STEP` is made.
    values: flat parameters.
    step: the step.
    remote: the way of a checkpoint that was written to a bucket.
    inside: names that stand in the msgpack file itself.
    dtype: of the tensors.

  Returns:
    The step's folder.
  """
  path = pathlib.Path(folder) / f'checkpoint_{step}'
  leaves = {}
  for name, value in values.items():
    if name in inside:
      leaves[name] = value
      continue
    where = f'target.{name.replace("/", ".")}'
    metadata = {
      'chunks': [-(-size // 2) for size in value.shape],
      'compressor': {'id': 'gzip'},
      'shape': list(value.shape),
    }
    tensorstore.open(
      {
        'driver': 'zarr',
        'dtype': dtype,
        'kvstore': {'driver': 'file', 'path': str(path / where)},
        'metadata': metadata,
      },
      create=True,
    ).result().write(value.astype(dtype)).result()
    leaf = {'driver': 'zarr', 'dtype': dtype, 'metadata': metadata}
    if remote:
      bucket = {'bucket': 't5x-dummy-bucket', 'driver': 'gcs'}
      leaf |= {'kvstore': bucket, 'path': where}
    else:
      leaf |= {'kvstore': {'driver': 'file', 'path': f'{where}/'}}
    leaves[name] = leaf
  state = {'step': np.int32(step), 'param_states': {'x': np.zeros(3)}}
  target = traverse_util.unflatten_dict(leaves, sep='/')
  content = {'version': 3, 'optimizer': {'state': state, 'target': target}}
  path.mkdir(exist_ok=True, parents=True)
  (path / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))
  return path
