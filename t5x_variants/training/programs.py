"""The programs of a run, as jit takes them: what trains is what is compiled.

The trainer runs them; `precompile` compiles them for a slice that is elsewhere.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import optax

from t5x_variants import errors
from t5x_variants.distributed import partitioning
from t5x_variants.model import network
from t5x_variants.training import train_state
from t5x_variants.training import train_step as step_lib


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
  """What a training step minimizes, and by which rule.

  Attributes:
    optimizer: from the tree of logical axis names and the learning rate to an
      optax optimizer.
    learning_rate: rate by step.
    num_microbatches: parts a batch is computed in, to save memory.
    label_smoothing: probability given to wrong tokens.
    z_loss: weight of the squared log normaliser.
    frozen: the pattern of parameters that `optimizer` leaves as they are, see
      `optimizer.adafactor`; here it is only logged.
  """

  optimizer: Callable[[Mapping, optax.Schedule], optax.GradientTransformation]
  learning_rate: optax.Schedule
  num_microbatches: int = 1
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  frozen: str | None = None

  def __post_init__(self):
    errors.check_positive('NUM_MICROBATCHES', self.num_microbatches)


def shardings_of(tree):
  """The sharding of each array of a tree."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def abstract_state(
  tx: optax.GradientTransformation,
  shapes: Mapping,
  shardings: Mapping,
  mesh: jax.sharding.Mesh,
) -> train_state.TrainState:
  """A run's state as shapes, dtypes and shardings, without memory.

  Args:
    tx: the optimizer.
    shapes: of the parameters.
    shardings: of the parameters.
    mesh: that of the shardings.
  """
  state = jax.eval_shape(functools.partial(train_state.start, tx), shapes)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    partitioning.state_shardings(state, shapes, shardings, mesh),
  )


def train_step(
  model: network.Transformer,
  tx: optax.GradientTransformation,
  state: train_state.TrainState,
  optimization: OptimizationConfig,
  random_seed: int,
):
  """The jitted step of `train_step.make_train_step`; it takes the state.

  Args:
    model: the network.
    tx: the optimizer.
    state: arrays or shapes with shardings, which the new state gets too.
    optimization: the objective.
    random_seed: of dropout.
  """
  return jax.jit(
    step_lib.make_train_step(
      model,
      tx,
      random_seed=random_seed,
      num_microbatches=optimization.num_microbatches,
      label_smoothing=optimization.label_smoothing,
      z_loss=optimization.z_loss,
    ),
    out_shardings=(shardings_of(state), None),
    donate_argnums=0,
  )


def eval_step(model: network.Transformer, num_microbatches: int = 1):
  """The jitted evaluation, `(params, batch) -> sums`."""
  return jax.jit(step_lib.make_eval_step(model, num_microbatches))


def decode(model: network.Transformer, decoder, length: int, eos_id: int):
  """The jitted decoding, `(params, inputs, key) -> tokens, log-probabilities`.

  Args:
    model: the network.
    decoder: `decoding.beam_search`, `greedy` or `sample`.
    length: tokens of an output at most.
    eos_id: the token that ends one.
  """
  return jax.jit(
    functools.partial(decoder, model, length=length, eos_id=eos_id)
  )
