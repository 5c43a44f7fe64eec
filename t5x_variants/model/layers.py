"""Parts of every T5 layer: matrix products, norm, embedding, constraints.

T5's norm (Raffel et al. 2019, 1910.10683) only rescales,
x / sqrt(mean(x^2) + eps) * scale. Attention is in `attention`.

Shapes: B batch, L length, D emb_dim, V vocabulary. Logical axis names are
those of t5x.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jax import lax
from jaxtyping import Array, Float, Int

from t5x_variants import errors

DENSE_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


def constrain(x: Array, *axes: str) -> Array:
  """Constrains how x is sharded, by logical axis names.

  Does nothing without logical axis rules or without a mesh. Flax's function
  of this purpose does nothing either under the `with mesh:` of t5x, which it
  no longer looks at; JAX does.

  Raises:
    errors.UserError: a rule that cannot be followed.
  """
  rules = partitioning.get_axis_rules()
  if not rules:
    return x
  try:
    return lax.with_sharding_constraint(
      x, partitioning.logical_to_mesh_axes(axes, rules)
    )
  except RuntimeError:  # There is no mesh.
    return x
  except ValueError as error:
    raise errors.UserError(
      f'An activation of shape {list(x.shape)}, axes {axes}, cannot be laid '
      f'out by the rules {dict(rules)}: {error}'
    ) from error


class DenseGeneral(nn.Module):
  """A matrix product over the last axes, without bias.

  Attributes:
    features: the shape that replaces the contracted axes.
    kernel_axes: logical names of the two axes of the 2-D kernel.
    contract: how many trailing axes are contracted.
    dtype: what to compute in.
    kernel_init: initial distribution, as a function of the 2-D shape.
  """

  features: tuple[int, ...]
  kernel_axes: tuple[str, str]
  contract: int = 1
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = DENSE_INIT

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies the kernel."""
    kept = x.shape[: x.ndim - self.contract]
    rows = math.prod(x.shape[x.ndim - self.contract :])
    kernel = partitioning.param_with_axes(
      'kernel',
      self.kernel_init,
      (rows, math.prod(self.features)),
      jnp.float32,
      axes=self.kernel_axes,
    )
    # As rows of tokens: see kernels/reference.py.
    y = x.astype(self.dtype).reshape(-1, rows) @ kernel.astype(self.dtype)
    return y.reshape(*kept, *self.features)


class LayerNorm(nn.Module):
  """T5's norm: rescales to unit mean square, with no mean and no bias."""

  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
    """Normalises the last axis, in float32."""
    scale = partitioning.param_with_axes(
      'scale',
      nn.initializers.ones,
      (x.shape[-1],),
      jnp.float32,
      axes=('embed',),
    )
    x = x.astype(jnp.float32)
    square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    y = (x * lax.rsqrt(square + self.epsilon)).astype(self.dtype)
    return y * scale.astype(self.dtype)


class Embed(nn.Module):
  """The token table, as input embedding and, when tied, as output matrix."""

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    """Declares the table."""
    self.embedding = partitioning.param_with_axes(
      'embedding',
      nn.initializers.normal(stddev=1.0),
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=('vocab', 'embed'),
    )

  def __call__(self, tokens: Int[Array, 'B L']) -> Float[Array, 'B L D']:
    """Looks the tokens up; t5x's evaluation initialises with float ones.

    An accelerator does it as a matmul: a table sharded over the vocabulary
    is then partitioned like any other, and its gradient needs no scatter. On
    a CPU the matmul would cost as much as the logits.
    """

    def matmul(table, tokens):
      return jax.nn.one_hot(tokens, len(table), dtype=table.dtype) @ table

    def gather(table, tokens):
      return table[tokens]

    table = self.embedding.astype(self.dtype)
    tokens = tokens.astype(jnp.int32)
    embedded = lax.platform_dependent(table, tokens, cpu=gather, default=matmul)
    return constrain(embedded, 'batch', 'length', 'embed')

  def attend(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L V']:
    """Logits by inner product with the table, in float32, for scale 1."""
    return x.astype(jnp.float32) @ self.embedding.T / math.sqrt(self.features)
