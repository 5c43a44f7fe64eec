"""Cross entropy of T5: label smoothing and z-loss, summed over real tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num


def cross_entropy(
  logits: Float[Array, 'B L V'],
  targets: Int[Array, 'B L'],
  weights: Num[Array, 'B L'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """What is minimised, and the sums that are reported.

  With log Z = logsumexp(logits) and p = softmax(logits), a token costs

      -sum_v q_v log p_v - H(q)  +  z_loss * (log Z)^2,

  where q puts 1 - label_smoothing on the target and the rest evenly on the
  V - 1 others. The entropy H(q) is taken off so that a perfect model costs 0.

  References:
    Mesh TensorFlow and t5x have the same two terms; z-loss keeps log Z near 0
    so that bfloat16 logits stay exact.

  Args:
    logits: unnormalised log probabilities; computed on in float32.
    targets: token ids.
    weights: 1 for tokens that count, 0 for padding.
    label_smoothing: probability given away to wrong tokens.
    z_loss: weight of the z-loss.

  Returns:
    The summed objective in nats (not divided by the number of tokens), and
    sums over counted tokens: `loss` (nats, without z-loss and smoothing),
    `z_loss` (nats), `correct` (tokens) and `weights` (tokens).
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  nats = log_z - at_target
  penalty = z_loss * jnp.square(log_z)
  objective = nats
  if label_smoothing:
    vocab = logits.shape[-1]
    low = label_smoothing / (vocab - 1)
    high = 1.0 - label_smoothing
    entropy = -(high * jnp.log(high) + (vocab - 1) * low * jnp.log(low + 1e-20))
    others = vocab * log_z - jnp.sum(logits, axis=-1) - nats
    objective = high * nats + low * others - entropy
  sums = {
    'loss': jnp.sum(nats * weights),
    'z_loss': jnp.sum(penalty * weights),
    'correct': jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights),
    'weights': jnp.sum(weights),
  }
  return jnp.sum((objective + penalty) * weights), sums
