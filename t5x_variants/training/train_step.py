"""One step of training, one of evaluation: pure functions, ready for jit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from t5x_variants.model import network
from t5x_variants.training import losses, train_state

Batch = Mapping[str, Array]
Sums = Mapping[str, Float[Array, '']]


def forward(
  model: network.Transformer,
  params: Mapping,
  batch: Batch,
  dropout_rng=None,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, ''], Sums]:
  """Objective and sums of one batch.

  Args:
    model: the network.
    params: its parameters.
    batch: t5x's features, each int32 `[batch, length]`: the encoder's input
      tokens, the decoder's input and target tokens and loss weights; segment
      ids and positions when packed.
    dropout_rng: key for dropout; None switches dropout off.
    label_smoothing: see losses.cross_entropy.
    z_loss: see losses.cross_entropy.

  Returns:
    The summed objective in nats, and losses.cross_entropy's sums with
    `tokens`, the number of tokens of both sides without padding.
  """
  logits: Any = model.apply(
    {'params': params},
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    batch['decoder_target_tokens'],
    encoder_segment_ids=batch.get('encoder_segment_ids'),
    decoder_segment_ids=batch.get('decoder_segment_ids'),
    encoder_positions=batch.get('encoder_positions'),
    decoder_positions=batch.get('decoder_positions'),
    enable_dropout=dropout_rng is not None,
    rngs=None if dropout_rng is None else {'dropout': dropout_rng},
  )
  objective, sums = losses.cross_entropy(
    logits,
    batch['decoder_target_tokens'],
    batch['decoder_loss_weights'],
    label_smoothing=label_smoothing,
    z_loss=z_loss,
  )
  tokens = jnp.sum(batch['encoder_input_tokens'] > 0)
  tokens += jnp.sum(batch['decoder_target_tokens'] > 0)
  return objective, sums | {'tokens': tokens.astype(jnp.float32)}


def microbatches(batch: Batch, count: int) -> Batch:
  """`[batch, ...]` to `[count, batch / count, ...]`.

  Row r goes to microbatch r mod count, so that every microbatch is spread
  over all devices just as the batch is.
  """
  return jax.tree.map(
    lambda x: jnp.swapaxes(
      x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1
    ),
    dict(batch),
  )


def make_train_step(
  model: network.Transformer,
  tx: optax.GradientTransformation,
  *,
  random_seed: int,
  num_microbatches: int = 1,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
):
  """Returns `(state, batch, key=None) -> (state, sums of this step)`.

  The objective is the mean over the batch's target tokens, whatever the number
  of microbatches. Dropout is on when the model's rate is not 0; its key
  depends on seed and step alone, so that a restart draws the same masks. Given
  `key`, the seed's `jax.random.key_data`, the seed is no part of the program,
  and runs of all seeds share what is compiled.
  """
  use_dropout = model.config.dropout_rate > 0

  def objective(params, batch, rng):
    return forward(
      model,
      params,
      batch,
      rng if use_dropout else None,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
    )

  gradient = jax.grad(objective, has_aux=True)

  def accumulate(params, batch, rng):
    if num_microbatches == 1:
      return gradient(params, batch, rng)

    def body(carry, xs):
      part = gradient(params, xs[0], xs[1])
      return jax.tree.map(jnp.add, carry, part), None

    parts = microbatches(batch, num_microbatches)
    rngs = jax.random.split(rng, num_microbatches)
    zeros = (
      jax.tree.map(jnp.zeros_like, params),
      train_state.zero_sums(train_state.FORWARD_SUMS),
    )
    return jax.lax.scan(body, zeros, (parts, rngs))[0]

  def train_step(
    state: train_state.TrainState, batch: Batch, key: Array | None = None
  ) -> tuple[train_state.TrainState, Sums]:
    if key is None:
      key = jax.random.key_data(jax.random.key(random_seed))
    rng = jax.random.fold_in(jax.random.wrap_key_data(key), state.step)
    grads, sums = accumulate(state.params, batch, rng)
    tokens = jnp.maximum(sums['weights'], 1.0)
    grads = jax.tree.map(lambda g: g / tokens, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    sums = sums | {
      'gradient_norm': optax.tree.norm(grads),
      'steps': jnp.ones((), jnp.float32),
    }
    state = train_state.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      sums=jax.tree.map(jnp.add, dict(state.sums), sums),
    )
    return state, sums

  return train_step


def make_eval_step(model: network.Transformer, num_microbatches: int = 1):
  """Returns `(params, batch) -> sums`, in as many parts as training."""

  def eval_step(params: Mapping, batch: Batch) -> Sums:
    if num_microbatches == 1:
      return forward(model, params, batch)[1]
    parts = jax.lax.map(
      lambda part: forward(model, params, part)[1],
      microbatches(batch, num_microbatches),
    )
    return jax.tree.map(jnp.sum, parts)

  return eval_step
