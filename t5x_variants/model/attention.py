"""T5's attention: masks, relative position biases, heads, cache.

T5 (Raffel et al. 2019, 1910.10683) does not divide attention logits by
sqrt(head_dim), the initial query matrix is divided; and positions enter only
as a learned bias per head and bucketed distance between key and query, shared
by all layers of a stack.

Shapes: B batch, L length, Q queries, K keys, D emb_dim, H heads, P head_dim.
Logical axis names are those of t5x.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning
from jax import lax
from jaxtyping import Array, Bool, Float

from t5x_variants import errors
from t5x_variants.model import layers

# What a masked key gets added to its logit. Finite, so that a query all of
# whose keys are masked (padding) gives a uniform average and not NaN.
MASKED = -1e10

INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
RELPOS_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def relative_position_buckets(
  distance: np.ndarray,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> np.ndarray:
  """T5's bucket of each distance (key position minus query position).

  Half of the buckets hold one distance each; the others grow
  logarithmically up to `max_distance`, and the last holds all beyond. A
  bidirectional stack spends half of the buckets on either sign; otherwise
  keys after the query all share bucket 0.
  """
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance > 0, num_buckets, 0)
    size = np.abs(distance)
  else:
    size = np.maximum(-distance, 0)
  exact = num_buckets // 2
  # float32 and the epsilon decide ties on a bucket's edge as t5x does.
  ratio = size.astype(np.float32) / exact + np.finfo(np.float32).eps
  steps = np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)
  far = np.minimum(exact + steps.astype(np.int32), num_buckets - 1)
  return (offset + np.where(size < exact, size, far)).astype(np.int32)


class RelativePositionBiases(nn.Module):
  """One learned bias for each head and bucket of distances."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, distance: np.ndarray) -> Float[Array, 'H ...']:
    """The bias of each distance, by a matmul: its gradient is no scatter."""
    table = partitioning.param_with_axes(
      'rel_embedding',
      RELPOS_INIT,
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )
    buckets = relative_position_buckets(
      distance, self.bidirectional, self.num_buckets, self.max_distance
    )
    one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=self.dtype)
    return jnp.einsum('hb,...b->h...', table.astype(self.dtype), one_hot)


def distances(length: int) -> np.ndarray:
  """The distance from query q to key k at [q, k]."""
  return np.arange(length)[None, :] - np.arange(length)[:, None]


def attention_mask(
  query: Array, key: Array, compare: Callable[[Array, Array], Array]
) -> Bool[Array, 'B 1 Q K']:
  """Compares [B, Q] with [B, K] pairwise, with an axis for the heads."""
  return compare(query[:, None, :, None], key[:, None, None, :])


@jax.custom_jvp
def _softmax(logits: Float[Array, 'B H Q K']) -> Float[Array, 'B H Q K']:
  """Softmax over the keys, of which the backward pass keeps the result only.

  The derivative of `jax.nn.softmax`, whose values are the same, made XLA store
  more and take longer on a CPU; on a TPU it was not measured.
  """
  numerator = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  return numerator / jnp.sum(numerator, axis=-1, keepdims=True)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
  weights, change = _softmax(*primals), tangents[0]
  mean = jnp.sum(weights * change, axis=-1, keepdims=True)
  return weights, weights * (change - mean)


@jax.custom_vjp
def _add_bias(
  logits: Float[Array, 'B H Q K'], bias: Float[Array, '1 H Q K']
) -> Float[Array, 'B H Q K']:
  """The sum; its derivative adds up the examples by a matmul with ones.

  That is what a plain sum over the leading axis means, too, but XLA's CPU
  code for it takes as long as the rest of attention's backward pass.
  """
  return logits + bias


def _add_bias_backward(_, change):
  total = lax.dot_general(
    jnp.ones(change.shape[0], change.dtype),
    change,
    (((0,), (0,)), ((), ())),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  return change, total[None].astype(change.dtype)


_add_bias.defvjp(lambda *sides: (_add_bias(*sides), None), _add_bias_backward)


class MultiHeadDotProductAttention(nn.Module):
  """Attention with T5's unscaled logits, and a cache for decoding.

  Attributes:
    num_heads: number of heads.
    head_dim: width of a head.
    dropout_rate: dropout of the attention weights, one mask per key for all
      queries.
    dtype: what to compute in.
    float32_logits: whether logits and softmax are float32 whatever the dtype.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  float32_logits: bool = False

  @nn.compact
  def __call__(
    self,
    inputs_q: Float[Array, 'B Q D'],
    inputs_kv: Float[Array, 'B K D'],
    mask: Bool[Array, 'B 1 Q K'] | None = None,
    bias: Float[Array, '1 H Q K'] | None = None,
    *,
    by_distance: Float[Array, 'H distances'] | None = None,
    decode: bool = False,
    deterministic: bool = False,
  ) -> Float[Array, 'B Q D']:
    """Attends.

    Args:
      inputs_q: what asks.
      inputs_kv: what is asked.
      mask: which keys each query may see; None for all.
      bias: added to the logits.
      by_distance: when decoding, the bias of each distance, from which the
        one query's row is cut.
      decode: self-attention of one position at a time. A first call with the
        full length sets up the cache; each later call adds a position.
      deterministic: no dropout.

    Returns:
      The attended values, in the shape of `inputs_q`.
    """

    def project(name, inputs, init):
      y = layers.DenseGeneral(
        (self.num_heads, self.head_dim),
        ('embed', 'joined_kv'),
        dtype=self.dtype,
        kernel_init=init,
        name=name,
      )(inputs)
      return layers.constrain(y, 'batch', 'length', 'heads', 'kv')

    query = project('query', inputs_q, self._query_init)
    key = project('key', inputs_kv, INIT)
    value = project('value', inputs_kv, INIT)
    if decode:
      key, value, mask, bias = self._extend_cache(key, value, by_distance)
    attended = self._attend(query, key, value, mask, bias, deterministic)
    return layers.DenseGeneral(
      (inputs_q.shape[-1],),
      ('joined_kv', 'embed'),
      contract=2,
      dtype=self.dtype,
      kernel_init=INIT,
      name='out',
    )(attended)

  def _query_init(self, *args) -> Array:
    return INIT(*args) / math.sqrt(self.head_dim)

  def _attend(self, query, key, value, mask, bias, deterministic):
    """Softmax attention, [B, Q, H, P] and [B, K, H, P] to [B, Q, H, P]."""
    # Heads before positions, so that each matmul finds its batch in front.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    wide = jnp.float32 if self.float32_logits else None
    logits = jnp.einsum(
      'bhqd,bhkd->bhqk', query, key, preferred_element_type=wide
    )
    if mask is not None:
      logits = logits + jnp.where(mask, 0.0, MASKED).astype(logits.dtype)
    if bias is not None:
      logits = _add_bias(logits, bias.astype(logits.dtype))
    weights = _softmax(logits).astype(self.dtype)
    weights = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      weights, deterministic=deterministic
    )
    attended = jnp.einsum('bhqk,bhkd->bhqd', weights, value)
    return jnp.swapaxes(attended, 1, 2)

  def _extend_cache(self, key, value, by_distance):
    """Adds one position to the cache; sets it up on the first call.

    Keys and values are kept as [B, H, P, K], the layout of t5x, whose beam
    search reorders the leaves by name.
    """
    ready = self.has_variable('cache', 'cached_key')
    kept_key, kept_value = (
      self.variable(
        'cache',
        name,
        lambda x=x: jnp.zeros(jnp.moveaxis(x, 1, -1).shape, x.dtype),
      )
      for name, x in (('cached_key', key), ('cached_value', value))
    )
    index = self.variable('cache', 'cache_index', lambda: jnp.int32(0))
    if not ready:
      return key, value, None, None
    length, now = kept_key.value.shape[-1], index.value
    if key.shape[1] != 1 or by_distance.shape[-1] != 2 * length - 1:
      raise errors.UserError(
        f'A decoding step takes 1 position and max_decode_length={length}, '
        f'the length its cache was made for; got {key.shape[1]} positions '
        f'and max_decode_length={(by_distance.shape[-1] + 1) // 2}.'
      )
    for kept, x in ((kept_key, key), (kept_value, value)):
      kept.value = lax.dynamic_update_slice_in_dim(
        kept.value, jnp.moveaxis(x, 1, -1), now, axis=-1
      )
    index.value = now + 1
    mask = (jnp.arange(length) <= now)[None, None, None, :]
    bias = lax.dynamic_slice_in_dim(
      by_distance, length - 1 - now, length, axis=-1
    )[None, :, None, :]
    key, value = (jnp.moveaxis(k.value, -1, 1) for k in (kept_key, kept_value))
    return key, value, mask, bias
