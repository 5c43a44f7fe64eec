"""What google-research/t5x takes from here, for its gin files below gin/t5x/.

t5x trains `network.Transformer` as it stands; these functions fill what its
own defaults leave open:

  mlp_activations   any activation inside t5x's own networks, one set of
                    coefficients per layer
  factor_rules      Adafactor's rules, with an error that names the cure
  submesh           a part of the TPU for one copy of the parameters, on the
  num_partitions    generations that t5x has no default mesh for

t5x is not on PyPI and never needed to import this module.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
from jaxtyping import Array, Float

from t5x_variants import activations, errors, mlp

FACTORS = ('row', 'column', 'batch', 'none')


def mlp_activations(
  activation, gated: bool
) -> tuple[Callable[[Array], Array] | str, ...]:
  """An activation for `mlp_activations` of t5x's T5Config.

  Args:
    activation: a name of the activation table, or a record of it.
    gated: whether a linear branch is multiplied in.

  Returns:
    t5x's activations of the block's branches: a function that t5x calls inside
    its block, and 'linear' when gated. The function builds a Flax module each
    time, so that each layer has coefficients of its own (a module made once
    would give all layers one set); they stand at `mlp/activation/<name>`, as
    in our block.
  """
  record = activations.get(activation)
  if record.perturb is not None:
    raise errors.UserError(
      f'activation {record.name!r} draws noise in training only, and '
      "t5x's own network does not tell its activations when that is: take "
      'another version, or our network by gin/t5x/model.gin.'
    )

  def apply(z: Float[Array, '... F']) -> Float[Array, '... F']:
    coefficients = {}
    if record.init():
      coefficients = mlp.Coefficients(record, name='activation')()
    return record.fn(z, coefficients)

  return (apply, 'linear') if gated else (apply,)


class _FactorRules(dict):
  """Rules that say what to do where there is none."""

  def __missing__(self, axis):
    raise errors.UserError(
      f'Adafactor has no factor rule for the parameter axis {axis!r}. '
      "Coefficients of an activation take the axis 'mlp_activations', which "
      'has one; for an axis of your own give one in gin: '
      f"for_t5x.factor_rules.more = {{{axis!r}: 'none'}} (or 'row', 'column', "
      f"'batch'). Axes with a rule: {', '.join(sorted(self))}."
    )


def factor_rules(more: Mapping[str, str] | None = None) -> Mapping:
  """t5x's factor rules of Adafactor, by logical axis.

  Args:
    more: rules for axes of your own, each 'row', 'column', 'batch' or 'none'.

  Returns:
    What `adafactor.Adafactor` takes as `logical_factor_rules`.
  """
  from t5x import adafactor

  more = dict(more or {})
  for axis, factor in more.items():
    if factor not in FACTORS:
      raise errors.UserError(
        f'The factor rule of the axis {axis!r} is {factor!r}: use one of '
        f'{list(FACTORS)}.'
      )
  return _FactorRules(dict(adafactor.standard_logical_factor_rules()) | more)


def num_partitions(model_axis_size: int = 1) -> int | None:
  """The size of the model axis where t5x makes the mesh of it; else None.

  That is on a CPU or GPU; on a TPU `submesh` says more.
  """
  return None if _is_tpu(jax.devices()) else model_axis_size


def submesh(
  model_axis_size: int = 1, devices: Sequence | None = None
) -> tuple[int, int, int, int] | None:
  """The chips (x, y, z) and cores over which one copy of parameters lies.

  All cores of a chip first, then as near to a square or a cube of chips as
  the slice allows: neighbours are fastest. It depends on the slice alone and
  so is right for every generation.

  Args:
    model_axis_size: devices that share one copy of the parameters.
    devices: of the whole slice; None: those of this program.

  Returns:
    `model_parallel_submesh` of t5x's partitioner; None where there is no TPU.
  """
  devices = jax.devices() if devices is None else devices
  if not _is_tpu(devices):
    return None
  bounds = tuple(
    1 + max(place)
    for place in zip(
      *((*device.coords, device.core_on_chip) for device in devices),
      strict=True,
    )
  )
  return _tile(model_axis_size, bounds)


def _is_tpu(devices: Sequence) -> bool:
  return devices[0].platform == 'tpu'


def _tile(size: int, bounds: Sequence[int]) -> tuple[int, int, int, int]:
  """Cuts `size` devices out of a slice of (x, y, z, cores) devices."""
  chips, cores = list(bounds[:3]), bounds[3]
  best = [1, 1, 1, cores if size > 1 else 1]
  fitting = {1: tuple(best)} if size == 1 else {cores: tuple(best)}
  while True:
    room = [a for a in range(3) if chips[a] % (2 * best[a]) == 0]
    if not room:
      break
    best[min(room, key=lambda a: best[a])] *= 2
    fitting[best[0] * best[1] * best[2] * best[3]] = tuple(best)
  if size not in fitting:
    raise errors.UserError(
      f'MODEL_AXIS_SIZE is {size}: a slice of {" x ".join(map(str, chips))} '
      f'chips with {cores} core(s) each takes one of '
      f'{sorted({1, *fitting})}.'
    )
  return fitting[size]
