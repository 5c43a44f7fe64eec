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
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5x_variants import errors

Branches = Float[Array, 'D F'] | Sequence[Float[Array, 'D F']]
Coefficients = Mapping[str, Float[Array, ' K']]


def ffn(
  x: Float[Array, '... D'],
  wi: Branches,
  wo: Float[Array, 'F D'],
  coefficients: Coefficients,
  activation,
  gated: bool,
  *,
  on_hidden: Callable[[Float[Array, '... F']], Float[Array, '... F']]
  | None = None,
) -> Float[Array, '... D']:
  """Applies the feed-forward block.

  Args:
    x: inputs, in the dtype to compute in.
    wi: the input matrix, or the pair (activated branch, linear branch).
    wo: the output matrix.
    coefficients: the activation's learned vectors by name, float32; empty
      for an activation without any.
    activation: a record of the activation table.
    gated: whether a linear branch is multiplied in.
    on_hidden: applied to the hidden activations before `wo`: dropout, a
      sharding constraint.

  Returns:
    The block's output, in the dtype of x.
  """
  branches = check(x, wi, wo, coefficients, activation, gated)
  # As rows of tokens: XLA's CPU code for the backward pass of a matmul of
  # three axes takes three times as long.
  rows = x.reshape(-1, x.shape[-1])
  wide = jnp.promote_types(x.dtype, jnp.float32)
  z = rows @ branches[0].astype(x.dtype)
  hidden = activation.fn(z.astype(wide), coefficients)
  if gated:
    hidden = hidden * (rows @ branches[1].astype(x.dtype)).astype(wide)
  hidden = hidden.astype(x.dtype)
  if on_hidden is not None:
    hidden = on_hidden(hidden.reshape(*x.shape[:-1], -1))
    hidden = hidden.reshape(len(rows), -1)
  return (hidden @ wo.astype(x.dtype)).reshape(x.shape)


def check(
  x, wi, wo, coefficients, activation, gated: bool
) -> tuple[jax.Array, ...]:
  """Refuses operands that do not fit together; returns the branches."""
  branches = tuple(wi) if isinstance(wi, tuple | list) else (wi,)
  if len(branches) != 1 + gated:
    raise errors.UserError(
      f'A block with gated={gated} takes {1 + gated} input matrices, got '
      f'{len(branches)}: pass wi as '
      f'{"a pair (wi_0, wi_1)" if gated else "one array"}.'
    )
  expected = (x.shape[-1], wo.shape[0])
  for branch in branches:
    if branch.shape != expected or wo.shape[1] != expected[0]:
      raise errors.UserError(
        f"The block's matrices do not fit: x has shape {x.shape}, wi "
        f'{branch.shape}, wo {wo.shape}; with D = {expected[0]} they must be '
        '[D, F] and [F, D].'
      )
  needed = set(activation.init())
  if set(coefficients) != needed:
    raise errors.UserError(
      f'The activation {activation.name!r} takes the coefficients '
      f'{sorted(needed)}, got {sorted(coefficients)}: pass exactly those.'
    )
  return branches
