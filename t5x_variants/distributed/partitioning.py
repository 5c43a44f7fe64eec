"""The mesh, and which mesh axis each logical axis of a parameter lies on.

Two mesh axes: `data` (examples) and `model` (heads, width, vocabulary). Model
code names logical axes only ('embed', 'mlp', ...), as in t5x; rules map them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_variants import errors

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

BATCH_SPEC = PartitionSpec('data')


def standard_logical_axis_rules(parameter_partitioning_dims: int = 1) -> Rules:
  """The rules from logical axes to mesh axes, t5x's names.

  Args:
    parameter_partitioning_dims: 1 shards parameters over `model` alone; 2 also
      over `data` along `embed` (fully sharded parameters).
  """
  if parameter_partitioning_dims not in (1, 2):
    raise errors.UserError(
      f'parameter_partitioning_dims is {parameter_partitioning_dims}; 1 '
      '(parameters over the model axis) or 2 (over data as well).'
    )
  return (
    ('batch', 'data'),
    ('vocab', 'model'),
    ('mlp', 'model'),
    ('heads', 'model'),
    ('joined_kv', 'model'),
    # In an activation the data axis is taken by `batch`, so this rule
    # shards `embed` in parameters only.
    ('embed', 'data' if parameter_partitioning_dims == 2 else None),
    ('kv', None),
    ('length', None),
    ('relpos_buckets', None),
    ('mlp_activations', None),
    ('layers', None),
  )


def make_mesh(
  model_axis_size: int = 1,
  data_axis_size: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices, laid along the links between them.

  Args:
    model_axis_size: devices that share one copy of the parameters.
    data_axis_size: how many such groups there must be; None takes what is
      there. A slice that lacks a host is refused by it.
    devices: of a slice that is elsewhere; None takes this run's.

  Raises:
    errors.UserError: the sizes are not those of the devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if model_axis_size < 1 or count % model_axis_size:
    fitting = [n for n in range(1, count + 1) if count % n == 0]
    raise errors.UserError(
      f'MODEL_AXIS_SIZE is {model_axis_size}, which does not divide the '
      f'{count} device(s); choose one of {fitting}.'
    )
  if data_axis_size not in (None, count // model_axis_size):
    raise errors.UserError(
      f'DATA_AXIS_SIZE {data_axis_size} times MODEL_AXIS_SIZE '
      f'{model_axis_size} is a mesh of {data_axis_size * model_axis_size} '
      f'devices, but there are {count}: take the gin/tpu file of this slice, '
      f'or DATA_AXIS_SIZE={count // model_axis_size}; None takes what is '
      'there.'
    )
  return Mesh(
    _laid_out((count // model_axis_size, model_axis_size), devices),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def _laid_out(shape: tuple[int, int], devices) -> np.ndarray:
  """Devices so that neighbours of an axis are neighbours in the slice."""
  try:
    return mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError:
    # No set of the slice's own axes has these sizes: cut one of them.
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )


@dataclasses.dataclass(frozen=True)
class Shard:
  """Which rows of every batch a process reads.

  Attributes:
    index: of the shard.
    count: of shards; fewer than processes where the model axis is wider than
      a host, whose rows others need as well.
    first: whether this process is the first that reads the shard.
  """

  index: int
  count: int
  first: bool


def data_shard(mesh: Mesh, process: int | None = None) -> Shard:
  """The shard of a process: the rows that lie on its devices.

  Args:
    mesh: over the devices of all processes, axes `data` and `model`.
    process: its index; None is this one.

  Raises:
    errors.UserError: hosts that share some rows and not others.
  """
  process = jax.process_index() if process is None else process
  rows: dict[int, set[int]] = {}
  for place, device in np.ndenumerate(mesh.devices):
    owner = rows.setdefault(device.process_index, set())
    owner.add(place[mesh.axis_names.index('data')])
  shards = sorted({tuple(sorted(mine)) for mine in rows.values()})
  if (
    sum(map(len, shards)) != mesh.shape['data']
    or len(set(map(len, shards))) != 1
  ):
    raise errors.UserError(
      f'The mesh {dict(mesh.shape)} over {len(rows)} hosts cuts the batch '
      'across hosts: make MODEL_AXIS_SIZE a divisor or a multiple of the '
      f'{len(mesh.local_devices)} devices of a host.'
    )
  mine = tuple(sorted(rows[process]))
  readers = [p for p in sorted(rows) if tuple(sorted(rows[p])) == mine]
  return Shard(shards.index(mine), len(shards), readers[0] == process)


def check_batch(batch_size: int, mesh: Mesh, num_microbatches: int = 1) -> None:
  """Refuses a batch that the data axis or the microbatches do not divide."""
  unit = mesh.shape['data'] * num_microbatches
  if batch_size < 1 or batch_size % unit:
    fit = max(1, round(batch_size / unit)) * unit
    raise errors.UserError(
      f'BATCH_SIZE is {batch_size}, but the mesh has a data axis of '
      f'{mesh.shape["data"]} and NUM_MICROBATCHES is {num_microbatches}: '
      f'it must be a multiple of {unit}, for example {fit}.'
    )


def param_shardings(
  shapes: Mapping, axes: Mapping, mesh: Mesh, rules: Rules
) -> Mapping:
  """The sharding of every parameter.

  Args:
    shapes: tree of arrays or `jax.ShapeDtypeStruct`.
    axes: the same tree with a tuple of logical axis names for each leaf.
    mesh: the mesh.
    rules: logical axis to mesh axis.

  Raises:
    errors.UserError: a mesh axis does not divide the dimension it shards, or
      the rules cannot be followed.
  """
  flat_axes = traverse_util.flatten_dict(axes)
  flat = {}
  for path, shape in traverse_util.flatten_dict(shapes).items():
    names = flat_axes[path]
    spec = _mesh_axes('/'.join(path), names, rules, mesh)
    for name, size, mesh_axes in zip(names, shape.shape, spec, strict=True):
      ways = _ways(mesh, name, mesh_axes)
      if size % ways:
        raise errors.UserError(
          f'Parameter {"/".join(path)} has {size} along {name!r}, which the '
          f'rule {name} -> {mesh_axes} splits over {ways} devices (mesh '
          f'{dict(mesh.shape)}): {size} is not divisible by {ways}; choose '
          'another mesh or another rule.'
        )
    flat[path] = NamedSharding(mesh, spec)
  return traverse_util.unflatten_dict(flat)


def _mesh_axes(
  parameter: str, names: tuple[str, ...], rules: Rules, mesh: Mesh
) -> PartitionSpec:
  """The mesh axes of one parameter; Flax's words for what is wrong, re-said."""
  where = (
    f'Parameter {parameter} has the logical axes {names}, and the mesh is '
    f'{dict(mesh.shape)}'
  )
  try:
    ruled = {name for name, _ in rules}
    spec = nn.logical_to_mesh_axes(names, rules)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'{where}; the rules {rules} cannot be followed: {error}. Each rule is '
      "(logical axis, mesh axis), such as ('mlp', 'model'), or has a tuple of "
      'mesh axes, or None.'
    ) from error
  if unruled := [name for name in names if name not in ruled]:
    raise errors.UserError(
      f'{where}; there is no rule for {", ".join(map(repr, unruled))}: add '
      f'({unruled[0]!r}, None) to leave it whole, or name a mesh axis.'
    )
  assert spec is not None  # It is only where `names` is None.
  return spec


def _ways(mesh: Mesh, name: str, mesh_axes) -> int:
  """Over how many devices the mesh axes of one rule split."""
  if mesh_axes is None:
    return 1
  mesh_axes = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
  for axis in mesh_axes:
    if axis not in mesh.shape:
      raise errors.UserError(
        f'The rule for {name!r} names the mesh axis {axis!r}, but the mesh has '
        f'{", ".join(map(repr, mesh.shape))}: use these, or None.'
      )
  return math.prod(mesh.shape[axis] for axis in mesh_axes)


def state_shardings(state, params: Mapping, shardings: Mapping, mesh: Mesh):
  """Shardings for a tree that may hold copies of the parameters' tree.

  An optimizer state's moments end in a parameter's path and have its shape:
  those lie where the parameter lies; everything else (counts, the factored
  rows and columns of Adafactor) is small and replicated.
  """
  where = {
    path: (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      traverse_util.flatten_dict(params).items(),
      traverse_util.flatten_dict(shardings).values(),
      strict=True,
    )
  }
  replicated = NamedSharding(mesh, PartitionSpec())

  def of_leaf(path, leaf):
    keys = tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey))
    for start in range(len(keys)):
      shape, sharding = where.get(keys[start:], (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(of_leaf, state)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Mapping:
  """Puts every process's rows together as one batch sharded over `data`."""
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(
      NamedSharding(mesh, BATCH_SPEC), rows
    ),
    dict(batch),
  )
