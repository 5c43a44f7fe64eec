"""The feed-forward block in plain JAX: what every implementation must equal.

  ungated   y = act(x W; c) Wo
  gated     y = (act(x W; c) * (x V)) Wo        (Shazeer 2020, 2002.05202)

Shapes: x [..., D]; W, V [D, F]; Wo [F, D]; c a dict of [K] vectors, one set
for the whole block; y [..., D]. A gated block passes the pair (W, V) as `wi`.

Precision: the matmuls take and give the dtype of x (every backend accumulates
a bfloat16 matmul in float32). Activation and product are computed in float32
and cast once. Asking the matmuls for float32 outputs instead would double
what is stored for the backward pass and feed float32 cotangents to its
matmuls, for a rounding that XLA drops anyway where it fuses.

Memory: autodiff keeps each intermediate of the activation, in float32, which
for a rational one is more than all the rest of the layer. With `save` the
backward pass is written out instead and computes the hidden activations again:
from z and u, or from x. A checkpoint policy around the block cannot undo it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from t5x_variants.kernels import operands


def ffn(
  x: Float[Array, '... D'],
  wi: operands.Branches,
  wo: Float[Array, 'F D'],
  coefficients: operands.Coefficients,
  activation,
  gated: bool,
  *,
  save: str = 'all',
  on_hidden: Callable[[Float[Array, '... F']], Float[Array, '... F']]
  | None = None,
) -> Float[Array, '... D']:
  """Applies the feed-forward block; the arguments are those of kernels.ffn."""
  branches = operands.check(x, wi, wo, coefficients, activation, gated)
  # As rows of tokens: XLA's CPU code for the backward pass of a matmul of
  # three axes takes three times as long.
  rows = x.reshape(-1, x.shape[-1])

  def after(hidden):
    if on_hidden is None:
      return hidden
    hidden = on_hidden(hidden.reshape(*x.shape[:-1], -1))
    return hidden.reshape(len(rows), -1)

  if save == 'all':
    zs = _preactivations(rows, branches)
    hidden = after(_hidden(activation, zs, coefficients))
    return (hidden @ wo.astype(x.dtype)).reshape(x.shape)
  like = jax.ShapeDtypeStruct((len(rows), wo.shape[0]), x.dtype)
  after, constants = _without_closure(after, like)
  block = _saving(activation, after, save)
  y = block(rows, branches, wo, dict(coefficients), constants)
  return y.reshape(x.shape)


def _preactivations(rows, branches):
  return (rows @ branch.astype(rows.dtype) for branch in branches)


def _hidden(activation, zs, coefficients):
  zs = iter(zs)
  z = next(zs)
  wide = jnp.promote_types(z.dtype, jnp.float32)
  hidden = activation.fn(z.astype(wide), coefficients)
  for u in zs:
    hidden = hidden * u.astype(wide)
  return hidden.astype(z.dtype)


def _without_closure(function, like):
  """A function as one of the traced values it closes over, and these values.

  A custom derivative may not close over them (a dropout key, say).
  """
  closed = jax.make_jaxpr(function)(like)

  def explicit(value, constants):
    return jax.core.eval_jaxpr(closed.jaxpr, constants, value)[0]

  return explicit, closed.consts


def _saving(activation, after, save):
  """The block with a derivative of its own, of rows [M, D]."""

  def forward(rows, branches, wo, coefficients, constants):
    zs = tuple(_preactivations(rows, branches))
    hidden = after(_hidden(activation, zs, coefficients), constants)
    kept = zs if save == 'preactivations' else None
    y = hidden @ wo.astype(rows.dtype)
    return y, (rows, branches, wo, coefficients, constants, kept)

  def backward(residuals, dy):
    rows, branches, wo, coefficients, constants, kept = residuals
    # Else XLA finds that the forward pass has computed the same, and stores
    # that; and nothing is computed again before its gradient is there.
    rows, kept, dy = lax.optimization_barrier((rows, kept, dy))
    zs = tuple(_preactivations(rows, branches)) if kept is None else kept

    def hidden_of(zs, coefficients, constants):
      return after(_hidden(activation, zs, coefficients), constants)

    hidden, pull = jax.vjp(hidden_of, zs, coefficients, constants)
    dzs, dcoefficients, dconstants = pull(dy @ wo.astype(dy.dtype).T)
    dwo = jnp.matmul(hidden.T, dy, preferred_element_type=wo.dtype)
    dbranches = tuple(
      jnp.matmul(rows.T, dz, preferred_element_type=branch.dtype)
      for dz, branch in zip(dzs, branches, strict=True)
    )
    drows = sum(
      dz @ branch.astype(dz.dtype).T
      for dz, branch in zip(dzs, branches, strict=True)
    )
    return drows, dbranches, dwo, dcoefficients, dconstants

  @jax.custom_vjp
  def block(*primals):
    return forward(*primals)[0]

  block.defvjp(forward, backward)
  return block
