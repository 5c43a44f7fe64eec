"""The state of a run and its making: parameters, optimizer state, sums."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from flax.core import unfreeze
from jaxtyping import Array, Float, Int

from t5x_variants.model import network, parameters

# What one forward pass sums up (see train_step.forward).
FORWARD_SUMS = ('loss', 'z_loss', 'correct', 'weights', 'tokens')
# Sums since the last record, kept with the state so that a restart between
# two records writes the record an unbroken run would have written.
SUMS = (*FORWARD_SUMS, 'gradient_norm', 'steps')


class TrainState(struct.PyTreeNode):
  """All that a step changes."""

  step: Int[Array, '']
  params: Mapping[str, Any]
  opt_state: Any
  sums: Mapping[str, Float[Array, '']]


def zero_sums(names: Iterable[str] = SUMS) -> dict[str, Float[Array, '']]:
  """The sums before the first step of a record."""
  return {name: jnp.zeros((), jnp.float32) for name in names}


def create(
  model: network.Transformer, tx: optax.GradientTransformation, rng
) -> TrainState:
  """A fresh state; traceable, so that each device makes its own part."""
  return start(tx, unfreeze(parameters.init(model, rng)['params']))


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
