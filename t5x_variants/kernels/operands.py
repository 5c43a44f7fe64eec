"""What the feed-forward block is called with, and what is refused.

Shapes: x [..., D]; W, V [D, F]; Wo [F, D]; coefficients: [K] vectors by name.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float

from t5x_variants import errors
from t5x_variants.activations import Activation

Branches = Float[Array, 'D F'] | Sequence[Float[Array, 'D F']]
# Vectors, each of a length of its own.
Coefficients = Mapping[str, Float[Array, ' _']]

# What the backward pass finds stored besides x and the parameters:
#   all             whatever autodiff keeps
#   inputs          nothing: the rest is computed again
#   preactivations  z (and u of the linear branch), in the dtype of x
SAVES = ('all', 'inputs', 'preactivations')


def check(
  x, wi, wo, coefficients, activation, gated: bool
) -> tuple[Float[Array, 'D F'], ...]:
  """Refuses operands that do not fit together; returns the branches."""
  if not isinstance(activation, Activation):
    raise errors.UserError(
      f'The activation is {activation!r}, which is no record of the '
      'activation table: pass activations.get(name), or make one with '
      'activations.define(name, formula, paper=...).'
    )
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
  needed = {name: value.shape for name, value in activation.init().items()}
  if set(coefficients) != set(needed):
    raise errors.UserError(
      f'The activation {activation.name!r} takes the coefficients '
      f'{sorted(needed)}, got {sorted(coefficients)}: pass exactly those.'
    )
  given = {name: np.shape(coefficients[name]) for name in needed}
  if given != needed:
    raise errors.UserError(
      f'The activation {activation.name!r} takes coefficients of the shapes '
      f'{needed}, got {given}: start from its init().'
    )
  return branches


def check_choice(what: str, value, allowed: Sequence[str]) -> None:
  """Refuses a name that is not None and not one of the allowed."""
  if value is not None and value not in allowed:
    raise errors.UserError(
      f'{what} is {value!r}: use None or one of {list(allowed)}.'
    )
