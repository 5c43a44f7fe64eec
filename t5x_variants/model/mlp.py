"""The feed-forward block: its parameters, names, axes and dropout.

  ungated   y = dropout(act(x wi; c)) wo
  gated     y = dropout(act(x wi_0; c) * (x wi_1)) wo

Shapes: x, y [batch, length, embed]; wi, wi_0, wi_1 [embed, mlp];
wo [mlp, embed]; c the activation's coefficients, [K] each. Parameters have
the names of t5x (`wi/kernel` or `wi_0/kernel`, `wi_1/kernel`, `wo/kernel`);
coefficients stand at `activation/<name>`, one set for each block, in float32
whatever the block computes in.

Any activation can gate or not gate. Gating adds a third matrix, so a gated
block gets two thirds of the width for the same number of parameters
(Shazeer 2020, 2002.05202); `width` does that division.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float

from t5x_variants import activations, errors, kernels
from t5x_variants.model import layers

KERNEL_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)


def width(mlp_dim: int, gated: bool) -> int:
  """The width of a block that costs as much as an ungated one of `mlp_dim`."""
  if not gated:
    return mlp_dim
  if mlp_dim % 3:
    raise errors.UserError(
      f'A gated block gets two thirds of mlp_dim={mlp_dim}, which is not '
      'divisible by 3: choose a multiple of 3, such as '
      f'{mlp_dim - mlp_dim % 3} or {mlp_dim - mlp_dim % 3 + 3}.'
    )
  return mlp_dim * 2 // 3


class _Kernel(nn.Module):
  """One matrix, kept apart from its use so that a kernel may fuse several."""

  shape: tuple[int, int]
  axes: tuple[str, str]

  @nn.compact
  def __call__(self):
    return partitioning.param_with_axes(
      'kernel', KERNEL_INIT, self.shape, jnp.float32, axes=self.axes
    )


class Coefficients(nn.Module):
  """The learned vectors of one activation, a parameter each."""

  activation: Any

  @nn.compact
  def __call__(self) -> dict[str, Float[Array, ' K']]:
    """Returns them by name."""
    return {
      name: partitioning.param_with_axes(
        name,
        lambda _, value=value: jnp.asarray(value, jnp.float32),
        axes=('mlp_activations',),
      )
      for name, value in self.activation.init().items()
    }


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig:
  """Which function a feed-forward block is, and how it is carried out.

  Attributes:
    activation: a name of the activation table, or a record of it.
    gated: whether a linear branch is multiplied in.
    implementation: what carries the block out, see `kernels.ffn`: 'xla',
      'pallas', 'pallas_interpret', or None to choose.
    save: what it stores for the backward pass, see `kernels.ffn`: 'inputs',
      'preactivations', 'all', or None for what suits the implementation.
  """

  activation: Any = 'gelu'
  gated: bool = True
  implementation: str | None = None
  save: str | None = None

  def __post_init__(self):
    object.__setattr__(self, 'activation', activations.get(self.activation))
    for field, allowed in (
      ('implementation', kernels.IMPLEMENTATIONS),
      ('save', kernels.SAVES),
    ):
      value = getattr(self, field)
      if value is not None and value not in allowed:
        raise errors.UserError(
          f'FeedForwardConfig has {field}={value!r}: use None or one of '
          f'{list(allowed)}.'
        )


class MlpBlock(nn.Module):
  """The feed-forward block of an encoder or decoder layer.

  Attributes:
    mlp_dim: the real width F of the block.
    config: which function it is, and how it is carried out.
    dropout_rate: dropout of the hidden activations, one mask per example for
      all its positions.
    dtype: what the matmuls compute in.
  """

  mlp_dim: int
  config: FeedForwardConfig
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B L D'], deterministic: bool = False
  ) -> Float[Array, 'B L D']:
    """Applies the block."""
    activation, gated = self.config.activation, self.config.gated
    features = x.shape[-1]
    into, out = (features, self.mlp_dim), (self.mlp_dim, features)
    names = ('wi_0', 'wi_1') if gated else ('wi',)
    wi = tuple(_Kernel(into, ('embed', 'mlp'), name=n)() for n in names)
    wo = _Kernel(out, ('mlp', 'embed'), name='wo')()
    coefficients = {}
    if activation.init():
      coefficients = Coefficients(activation, name='activation')()
    if activation.perturb is not None and not deterministic:
      coefficients = activation.perturb(coefficients, self.make_rng('dropout'))
    x = x.astype(self.dtype)
    if self.is_mutable_collection('intermediates'):
      # Computed again here, so that no implementation has to hand it out.
      self.sow('intermediates', 'preactivation', x @ wi[0].astype(x.dtype))
    return kernels.ffn(
      x,
      wi if gated else wi[0],
      wo,
      coefficients,
      activation,
      gated,
      save=self.config.save,
      # Parameters are made anywhere: t5x asks for their shapes before it enters
      # its mesh, which a kernel needs to know.
      implementation=(
        'xla' if self.is_initializing() else self.config.implementation
      ),
      on_hidden=None if deterministic else self._dropout(),
      constrain=lambda h: layers.constrain(h, 'batch', 'length', 'mlp'),
    )

  def _dropout(self):
    """Dropout as a pure function of the hidden activations; None for none.

    Not nn.Dropout, which may not be called where a derivative is traced.
    """
    if not self.dropout_rate:
      return None
    key, kept = self.make_rng('dropout'), 1.0 - self.dropout_rate

    def dropout(hidden):
      shape = (*hidden.shape[:-2], 1, hidden.shape[-1])
      mask = jax.random.bernoulli(key, kept, shape)
      return jnp.where(mask, hidden / kept, jnp.zeros_like(hidden))

    return dropout
