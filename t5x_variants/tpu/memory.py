"""Does a training step fit a device's memory, and if not, what would make it?

An estimate from sizes, in a second where the compiler takes minutes. Letters as
in `flops`; c bytes of a number in the compute dtype; a layer's tensors are
split over the model axis where they have heads or the width. On a device at a
time lie

  state     parameters and optimizer state, from their shardings
  gradients float32, once; twice with microbatches, which add them up
  kept      what the backward pass finds: each layer's, by remat policy
  working   one layer's tensors, the logits, cast or gathered parameters

The estimate leans to the high side: docs/tpu.md has it beside the compiler's
figures. Settings are tried in the order of what they cost.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from t5x_variants import chips, errors
from t5x_variants.tpu import compiling

REMAT = ('none', 'minimal', 'full')
# Bytes autodiff keeps for an element of the width: pre-activations, what the
# derivative needs and the hidden activations. docs/kernels.md has the figures
# that these go round up.
_ELEMENT = {False: 12, True: 26}
_LEARNED = 40
# Room for what the estimate does not see, where a suggestion is to fit.
MARGIN = 1.15


@dataclasses.dataclass(frozen=True)
class Memory:
  """Estimated bytes on a device; see the module."""

  state: int
  gradients: int
  kept: int
  working: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.state + self.gradients + self.kept + self.working


def estimate(plan: compiling.Plan, sizes: compiling.Sizes, data: int) -> Memory:
  """Estimates a training step's memory on a device.

  Args:
    plan: what is to run; its model axis is known.
    sizes: of its state, see `AotProgram.sizes`.
    data: the mesh's data axis.
  """
  ways = plan.model_axis_size
  assert ways is not None
  parts = plan.num_microbatches
  encoder, decoder, logits = _activations(plan, data)
  config = plan.model.config
  layers = config.num_encoder_layers, config.num_decoder_layers
  kept = sum(
    count * bytes_of(config.remat_policy)
    for count, bytes_of in zip(layers, (encoder, decoder), strict=True)
  )
  once = max(encoder('none'), decoder('none'))
  # The stack in the compute dtype; gathered, a layer at a time, where it is
  # spread over the data axis.
  whole = 4 * sizes.count / ways
  cast = sizes.params // 2 + 2 * (whole > 1.5 * sizes.params) * whole / min(
    layers
  )
  return Memory(
    sizes.params + sizes.optimizer,
    sizes.params * (1 if parts == 1 else 2),
    int(kept),
    int((0 if config.remat_policy == 'none' else once) + logits + cast),
  )


def estimate_of(aot: compiling.AotProgram) -> Memory:
  """The estimate of a program's own plan."""
  return estimate(aot.plan, aot.sizes(), aot.mesh.shape['data'])


def _activations(plan, data):
  """Bytes of one encoder and one decoder layer by policy; of the logits."""
  config = plan.model.config
  item = config.dtype.itemsize
  ways = plan.model_axis_size
  rows = plan.batch_size / data / plan.num_microbatches
  inputs, targets = plan.lengths
  d = config.emb_dim
  j = config.num_heads * config.head_dim / ways
  heads = config.num_heads / ways
  f = config.mlp_dim / ways
  branches = 1 + config.feed_forward.gated
  learned = bool(config.feed_forward.activation.init())
  element = branches * (
    _LEARNED if learned else _ELEMENT[config.feed_forward.gated] / 2
  )

  def attention(queries, keys):
    # q, k, v, the output; logits, weights and what masks them.
    return item * (4 * queries * j + heads * queries * keys * 2.5)

  def encoder(policy):
    x = inputs * d * item
    dots = x * 3 + inputs * item * (3 * j + branches * f)
    everything = (
      x * 8 + attention(inputs, inputs) + inputs * f * max(element, item)
    )
    return rows * dict(zip(REMAT, (everything, dots, x), strict=True))[policy]

  def decoder(policy):
    x = targets * d * item
    dots = x * 5 + targets * item * (4 * j + branches * f)
    dots += 2 * inputs * j * item
    everything = (
      x * 12
      + attention(targets, targets)
      + attention(targets, inputs)
      + 2 * inputs * j * item
      + targets * f * max(element, item)
    )
    return rows * dict(zip(REMAT, (everything, dots, x), strict=True))[policy]

  # Logits and their gradient in float32, the softmax between them.
  logits = rows * targets * config.vocab_size / ways * 4 * 3
  return encoder, decoder, logits


def clearly_too_large(memory: Memory, chip: chips.Chip) -> bool:
  """Whether compiling can be spared: the estimate is out of all reach.

  It is 1.3 to 1.5 times the compiler's figure where docs/tpu.md has both.
  """
  return memory.state > chip.usable or memory.total > 2 * chip.usable


def asked_for(words: str) -> int | None:
  """Bytes that the compiler asked for in its refusal, if it says."""
  for pattern in (
    r'Used ([\d.]+)([KMGT]) of',
    r'required .*?\(([\d.]+)([KMGT])',
  ):
    if found := re.search(pattern, words):
      return int(float(found[1]) * 2 ** (10 * (1 + 'KMGT'.index(found[2]))))
  return None


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """Settings that should make a plan fit.

  Attributes:
    flags: to add to the command.
    plan: the plan with them.
    memory: its estimate.
  """

  flags: tuple[str, ...]
  plan: compiling.Plan
  memory: Memory


def suggestion(aot: compiling.AotProgram, needed: int | None = None):
  """The nearest settings that the estimate says fit; None if none do.

  Args:
    aot: what does not fit.
    needed: bytes that the compiler asked for, where it said; an estimate that
      was too low raises the others' by as much.

  Returns:
    A `Suggestion`, or None.
  """
  chip = compiling.chip_of(aot)
  low = (needed or 0) / estimate_of(aot).total
  room = chip.usable / (MARGIN * max(1.0, low))
  # The state's part on a device follows from these two alone.
  known: dict[tuple, compiling.Sizes | None] = {}
  for plan, flags in _changes(aot.plan):
    layout = plan.model_axis_size, plan.parameter_partitioning_dims
    assert plan.model_axis_size is not None
    data = aot.mesh.size // plan.model_axis_size
    if not data or plan.batch_size % (data * plan.num_microbatches):
      continue
    if layout not in known:
      try:
        known[layout] = aot.sizes(plan)
      except errors.UserError:
        known[layout] = None  # It does not divide.
    if (sizes := known[layout]) is None:
      continue
    memory = estimate(plan, sizes, data)
    if memory.total <= room:
      return Suggestion(flags, plan, memory)
  return None


def _changes(plan) -> Iterator[tuple[compiling.Plan, tuple[str, ...]]]:
  """Other plans, cheapest change first: (plan, flags)."""
  config = plan.model.config
  policies = REMAT[REMAT.index(config.remat_policy) :]
  parts = [2**n for n in range(9)]
  ways = [2**n for n in range(6)]
  dims = range(plan.parameter_partitioning_dims, 3)
  found = []
  for policy, part, way, dim in itertools.product(policies, parts, ways, dims):
    price = (
      1.0 * policies.index(policy)
      + 1.1 * math.log2(part)
      + 1.3 * (dim - plan.parameter_partitioning_dims)
      + 1.7 * math.log2(way)
    )
    if price:
      found.append((price, policy, part, way, dim))
  for _, policy, part, way, dim in sorted(found):
    changed: dict[str, Any] = {}
    if policy != config.remat_policy:
      changed['REMAT_POLICY'] = policy
    if part > 1:
      changed['NUM_MICROBATCHES'] = part * plan.num_microbatches
    if way > 1:
      changed['MODEL_AXIS_SIZE'] = way * plan.model_axis_size
      if plan.data_axis_size:
        changed['DATA_AXIS_SIZE'] = plan.data_axis_size // way
    if dim != plan.parameter_partitioning_dims:
      changed['PARAMETER_PARTITIONING_DIMS'] = dim
    yield (
      _changed(plan, changed),
      tuple(
        f'--gin.{name}={_quoted(value)}' for name, value in changed.items()
      ),
    )


def _changed(plan, changed) -> compiling.Plan:
  """The plan with these macros."""
  fields = {
    'MODEL_AXIS_SIZE': 'model_axis_size',
    'DATA_AXIS_SIZE': 'data_axis_size',
    'PARAMETER_PARTITIONING_DIMS': 'parameter_partitioning_dims',
  }
  values = {fields[k]: v for k, v in changed.items() if k in fields}
  if 'NUM_MICROBATCHES' in changed:
    values['optimization'] = dataclasses.replace(
      plan.optimization, num_microbatches=changed['NUM_MICROBATCHES']
    )
  if 'REMAT_POLICY' in changed:
    config = dataclasses.replace(
      plan.model.config, remat_policy=changed['REMAT_POLICY']
    )
    values['model'] = plan.model.clone(config=config)
  return dataclasses.replace(plan, **values)


def _quoted(value) -> str:
  return f'"\'{value}\'"' if isinstance(value, str) else str(value)
