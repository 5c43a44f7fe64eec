"""The state of a run and its making: parameters, optimizer state, sums."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from flax.core import unfreeze
from flax.linen import partitioning as nn_partitioning
from jaxtyping import Array, Float, Int

from t5x_variants import errors
from t5x_variants.model import network

# What one forward pass sums up (see train_step.forward).
FORWARD_SUMS = ('loss', 'z_loss', 'correct', 'weights', 'tokens')
# Sums since the last record, kept with the state so that a restart between
# two records writes the record an unbroken run would have written.
SUMS = (*FORWARD_SUMS, 'gradient_norm', 'steps')


@struct.dataclass
class TrainState:
  """All that a step changes."""

  step: Int[Array, '']
  params: Mapping[str, Any]
  opt_state: Any
  sums: Mapping[str, Float[Array, '']]


def zero_sums(names: Iterable[str] = SUMS) -> dict[str, Float[Array, '']]:
  """The sums before the first step of a record."""
  return {name: jnp.zeros((), jnp.float32) for name in names}


def _init_params(model: network.Transformer, rng) -> Mapping:
  tokens = jnp.ones((1, 8), jnp.int32)
  return model.init(rng, tokens, tokens, tokens, enable_dropout=False)


def shapes_and_axes(model: network.Transformer) -> tuple[Mapping, Mapping]:
  """Shapes of the parameters, and their logical axis names, without memory."""
  variables = jax.eval_shape(
    functools.partial(_init_params, model), jax.random.key(0)
  )
  specs = unfreeze(nn_partitioning.get_axis_names(variables['params_axes']))
  axes = jax.tree.map(
    tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
  )
  return unfreeze(variables['params']), axes


def check_block(
  model: network.Transformer,
  shapes: Mapping,
  rows: int,
  lengths: Mapping[str, int] | None,
) -> None:
  """Refuses a feed-forward block that was named and cannot run here.

  Args:
    model: the network.
    shapes: of its parameters.
    rows: of a microbatch, over all devices.
    lengths: tokens of `inputs` and `targets` in a row; None: not known yet.

  Raises:
    errors.UserError: why FFN_IMPLEMENTATION cannot be.
  """
  if model.config.ffn_implementation in (None, 'xla'):
    return
  lengths = lengths or {'inputs': 512, 'targets': 128}
  inputs, targets = (
    jax.ShapeDtypeStruct((rows, lengths[name]), jnp.int32)
    for name in ('inputs', 'targets')
  )
  try:
    jax.eval_shape(
      functools.partial(model.apply, enable_dropout=False),
      {'params': shapes},
      inputs,
      targets,
      targets,
    )
  except errors.UserError as error:
    raise errors.UserError(
      f'FFN_IMPLEMENTATION is {model.config.ffn_implementation!r}: {error}'
    ) from error


def create(
  model: network.Transformer, tx: optax.GradientTransformation, rng
) -> TrainState:
  """A fresh state; traceable, so that each device makes its own part."""
  return start(tx, unfreeze(_init_params(model, rng)['params']))


def start(tx: optax.GradientTransformation, params: Mapping) -> TrainState:
  """The state before the first step from given parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    sums=zero_sums(),
  )


def with_weights(
  state: TrainState, tx: optax.GradientTransformation, values: Mapping
) -> TrainState:
  """The state with some parameters replaced and the optimizer started anew.

  Args:
    state: a fresh state, on its devices.
    tx: its optimizer.
    values: whole parameters by name, 'encoder/encoder_norm/scale'; each device
      takes its part.
  """

  def placed(name, leaf):
    if name not in values:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: values[name][index]
    )

  flat = traverse_util.flatten_dict(state.params, sep='/')
  params = traverse_util.unflatten_dict(
    {name: placed(name, leaf) for name, leaf in flat.items()}, sep='/'
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
  opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
  return state.replace(params=params, opt_state=opt_state)


def count(params: Mapping) -> int:
  """Number of parameters."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def model_info(params: Mapping, axes: Mapping) -> str:
  """The table of `model-info.txt`: name, shape, logical axes, size."""
  flat_axes = traverse_util.flatten_dict(axes)
  rows = [
    (
      '/'.join(path),
      str(list(leaf.shape)),
      ', '.join(flat_axes[path]),
      f'{math.prod(leaf.shape):,}',
    )
    for path, leaf in sorted(traverse_util.flatten_dict(params).items())
  ]
  rows = [('parameter', 'shape', 'logical axes', 'size'), *rows]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
    '  '.join(
      [*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]
    )
    for row in rows
  ]
  coefficients = sum(
    math.prod(leaf.shape)
    for path, leaf in traverse_util.flatten_dict(params).items()
    if 'mlp_activations' in flat_axes[path]
  )
  return '\n'.join(
    [
      *lines,
      '',
      f'{count(params):,} parameters in all, {coefficients} of them '
      'coefficients of activations.',
      '',
    ]
  )
