"""A run's programs, compiled ahead of time for a TPU slice that is elsewhere.

The step is the trainer's own (`programs`), over the mesh that the trainer would
make of the slice's devices; only the arrays are missing. The figures are the
compiler's, static: nothing is run.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding

from t5x_variants import chips, errors
from t5x_variants.distributed import partitioning
from t5x_variants.model import flops, network, parameters
from t5x_variants.tpu import collectives, topologies
from t5x_variants.training import programs

PROGRAMS = ('train', 'eval', 'decode')
# Unrolled, a program of more layers than this compiles for hours.
UNROLLED_LAYERS = 8
_EOS = 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run would be, without its data.

  Attributes:
    model: the network.
    optimization: the objective, the optimizer and its learning rate.
    batch_size: rows over all devices.
    feature_lengths: tokens of a row, by 'inputs' and 'targets'.
    decoder: see `inference.infer`.
    programs: which to compile, of PROGRAMS.
    model_axis_size: devices that share one copy of the parameters; None: as
      few as let the data axis divide the batch.
    data_axis_size: see `partitioning.make_mesh`.
    parameter_partitioning_dims: see `partitioning.standard_logical_axis_rules`.
    pack: whether several examples share a row.
    random_seed: of dropout.
  """

  model: network.Transformer
  optimization: programs.OptimizationConfig
  batch_size: int
  feature_lengths: Mapping[str, int]
  decoder: Callable
  programs: Sequence[str] = PROGRAMS
  model_axis_size: int | None = None
  data_axis_size: int | None = None
  parameter_partitioning_dims: int = 1
  pack: bool = True
  random_seed: int = 0

  def __post_init__(self):
    errors.check_positive('BATCH_SIZE', self.batch_size)
    lengths = self.feature_lengths
    if set(lengths) != {'inputs', 'targets'}:
      raise errors.UserError(
        f"TASK_FEATURE_LENGTHS is {dict(lengths)}: give {{'inputs': 512, "
        "'targets': 114}, or other lengths of these two."
      )
    for side, length in lengths.items():
      errors.check_positive(f'TASK_FEATURE_LENGTHS of {side!r}', length)
    if not self.programs or set(self.programs) - set(PROGRAMS):
      raise errors.UserError(
        f'PROGRAMS is {self.programs}: give some of {PROGRAMS}.'
      )
    config = self.model.config
    layers = config.num_encoder_layers + config.num_decoder_layers
    if layers > UNROLLED_LAYERS and not config.scan_layers:
      raise errors.UserError(
        f'SCAN_LAYERS is False and the model has {layers} layers: unrolled, '
        f'more than {UNROLLED_LAYERS} take hours to compile for a TPU. Add '
        '--gin.SCAN_LAYERS=True.'
      )

  @property
  def num_microbatches(self) -> int:
    """Parts a batch is computed in."""
    return self.optimization.num_microbatches

  @property
  def lengths(self) -> tuple[int, int]:
    """Tokens of a row of inputs and of targets."""
    return self.feature_lengths['inputs'], self.feature_lengths['targets']

  @property
  def rules(self) -> partitioning.Rules:
    """Logical axis to mesh axis."""
    return partitioning.standard_logical_axis_rules(
      self.parameter_partitioning_dims
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What of the state lies on one device, in bytes.

  Attributes:
    count: parameters in all.
    params: the device's part of them.
    optimizer: the device's part of the optimizer's state.
  """

  count: int
  params: int
  optimizer: int


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One program's figures, on one device, from the TPU compiler.

  Attributes:
    peak: bytes of HBM at most at a time, arguments included.
    moved: bytes by kind of collective.
    unknown_loops: loops of which `moved` counts one turn.
    lower_seconds: of tracing, on this machine.
    compile_seconds: of the compiler, on this machine.
  """

  peak: int
  moved: Mapping[str, int]
  unknown_loops: int
  lower_seconds: float
  compile_seconds: float


class DoesNotFit(Exception):
  """The compiler refused a program for its memory; its words."""


class AotProgram:
  """A plan on a slice: its mesh, its abstract state, its programs."""

  def __init__(self, plan: Plan, devices: Sequence[jax.Device]):
    """Checks the plan against the slice; nothing is traced but shapes.

    Args:
      plan: what to compile.
      devices: of the slice.

    Raises:
      errors.UserError: the mesh, the batch or a parameter does not divide.
    """
    self.devices = devices
    self.plan = with_mesh(plan, len(devices))
    self.mesh = mesh_for(self.plan, devices)
    # Before the mesh is set, whose devices nothing can be run on.
    self._shapes, self._axes = parameters.shapes_and_axes(plan.model)
    where = partitioning.param_shardings(
      self._shapes, self._axes, self.mesh, self.plan.rules
    )
    optimization = plan.optimization
    self._tx = optimization.optimizer(self._axes, optimization.learning_rate)
    self.state = programs.abstract_state(
      self._tx, self._shapes, where, self.mesh
    )
    self._key = jax.eval_shape(jax.random.key, 0)
    self._key_data = jax.eval_shape(jax.random.key_data, self._key)

  @property
  def device_kind(self) -> str:
    """JAX's name of the slice's devices."""
    return self.mesh.devices.flat[0].device_kind

  def sizes(self, plan: Plan | None = None) -> Sizes:
    """What the state takes on a device, under another plan for the mesh too.

    Raises:
      errors.UserError: that plan does not divide.
    """
    plan = plan or self.plan
    mesh = mesh_for(plan, self.devices)
    where = partitioning.param_shardings(
      self._shapes, self._axes, mesh, plan.rules
    )
    placed = partitioning.state_shardings(
      self.state.opt_state, self._shapes, where, mesh
    )
    return Sizes(
      parameters.count(self._shapes),
      device_bytes(self._shapes, where),
      device_bytes(self.state.opt_state, placed),
    )

  def compile(self, program: str) -> Compiled:
    """Compiles one of PROGRAMS.

    Raises:
      DoesNotFit: it needs more memory than a device has.
    """
    begun = time.perf_counter()
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.plan.rules):
      lowered = self._lowered(program)
      traced = time.perf_counter()
      try:
        compiled = lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        # `memory.asked_for` reads the figures, which come first.
        raise DoesNotFit(' '.join(str(error).split())[:300]) from error
    moved = collectives.moved(compiled.as_text())
    return Compiled(
      compiled.memory_analysis().peak_memory_in_bytes,
      moved.bytes,
      moved.unknown_loops,
      traced - begun,
      time.perf_counter() - traced,
    )

  def _lowered(self, program: str) -> Any:
    plan = self.plan
    if program == 'train':
      step = programs.train_step(
        plan.model,
        self._tx,
        self.state,
        plan.optimization,
        plan.random_seed,
      )
      return step.lower(self.state, self._batch(), self._key_data)
    if program == 'eval':
      step = programs.eval_step(plan.model, plan.num_microbatches)
      return step.lower(self.state.params, self._batch())
    length = plan.lengths[1]
    decode = programs.decode(plan.model, plan.decoder, length, _EOS)
    return decode.lower(
      self.state.params, self._rows(plan.lengths[0]), self._key
    )

  def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data pipeline hands out, as shapes."""
    kinds = {
      'encoder': ['input_tokens'],
      'decoder': ['input_tokens', 'target_tokens', 'loss_weights'],
    }
    lengths = dict(zip(kinds, self.plan.lengths, strict=True))
    packing = ['segment_ids', 'positions'] if self.plan.pack else []
    return {
      f'{side}_{name}': self._rows(lengths[side])
      for side in kinds
      for name in kinds[side] + packing
    }

  def _rows(self, length: int) -> jax.ShapeDtypeStruct:
    where = NamedSharding(self.mesh, partitioning.BATCH_SPEC)
    shape = (self.plan.batch_size, length)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)


def with_mesh(plan: Plan, devices: int) -> Plan:
  """The plan with its model axis: as few devices as the batch allows."""
  if plan.model_axis_size is not None:
    return plan
  unit = plan.num_microbatches
  fitting = [
    size
    for size in range(1, devices + 1)
    if devices % size == 0 and plan.batch_size % (devices // size * unit) == 0
  ]
  # Where none fits, the check of the batch says what would.
  return dataclasses.replace(plan, model_axis_size=(fitting or [1])[0])


def mesh_for(plan: Plan, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """The mesh of a plan whose model axis is known; the batch must divide."""
  assert plan.model_axis_size is not None
  mesh = partitioning.make_mesh(
    plan.model_axis_size, plan.data_axis_size, devices
  )
  partitioning.check_batch(plan.batch_size, mesh, plan.num_microbatches)
  return mesh


def device_bytes(shapes, shardings) -> int:
  """Bytes that a tree of shapes has on one device."""

  def part(leaf, sharding):
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(part, shapes, shardings)))


def model_flops(plan: Plan, program: str) -> flops.Flops:
  """FLOPs of the model in one step of training or evaluation, by formula."""
  count = flops.train_step if program == 'train' else flops.forward
  return count(plan.model.config, plan.batch_size, *plan.lengths)


def chip_of(aot: AotProgram) -> chips.Chip:
  """The table's row of the slice's devices."""
  return chips.CHIPS[aot.device_kind]


def open_slice(name: str) -> tuple[topologies.Slice, Sequence[jax.Device]]:
  """A slice by name, and its devices."""
  of = topologies.named(name)
  return of, topologies.devices(of)
