"""PolyReLU and PolyNorm: polynomial compositions of order r.

  PolyReLU_r(z) = bias + sum_{k=1..r} weight_k max(z, 0)^k
  PolyNorm_r(z) = bias + sum_{k=1..r} weight_k N(z^k),
                  N(u) = u / sqrt(mean(u^2) + 1e-6), mean over the last axis

Zhuo et al., 'Polynomial Composition Activations', ICLR 2025. As in their
code N divides by the root mean square; the paper's text has the L2 norm, a
factor sqrt(F) apart. The code they published stores the highest power first;
here weight[k - 1] belongs to the power k, so published weights are read as
weight[::-1]. All weights start at 1 / r and the bias at 0.

PolyReLU has ReLU (weight 1, 0, ..), ReLU^2 (0, 1, 0, ..) and, with
z = max(z, 0) - max(-z, 0), every polynomial as exact special cases.

PolyNorm is, but for the epsilon, a function of the direction of a row only:
the epsilon shows where the row's root mean square falls below about 0.1.
In float32 rows to 1e4 are safe up to order 4 (z^8 must stay below 3e38).

Shapes: z [..., F] -> [..., F]; weight [r], bias [1].
"""

import functools

import jax.numpy as jnp

from t5x_variants import errors
from t5x_variants.activations import fixed, registry

_PAPER = (
  'Zhuo et al. 2025, Polynomial Composition Activations: Unleashing the '
  'Dynamics of Large Language Models, arXiv:2411.03884'
)
_EPSILON = 1e-6


def polyrelu(order: int = 3) -> registry.Activation:
  """PolyReLU of the given order; equal orders give the identical object."""
  return _make('polyrelu', _order('polyrelu', order))


def polynorm(order: int = 3) -> registry.Activation:
  """PolyNorm of the given order; equal orders give the identical object."""
  return _make('polynorm', _order('polynorm', order))


def _order(name, order):
  if not isinstance(order, int) or isinstance(order, bool) or order < 1:
    raise errors.UserError(
      f'The order of {name} is {order!r}; it must be a whole number from 1 up.'
    )
  return order


@functools.cache
def _make(name, order):
  return registry.define(
    name if order == 3 else f'{name}(order={order})',
    _polyrelu if name == 'polyrelu' else _polynorm,
    paper=_PAPER,
    kind='elementwise' if name == 'polyrelu' else 'rowwise',
    initial={'weight': [1.0 / order] * order, 'bias': [0.0]},
  )


def _polyrelu(z, c):
  r = fixed.relu(z, {})
  h = c['weight'][-1] * r
  for weight in reversed(c['weight'][:-1]):
    h = (h + weight) * r
  return h + c['bias'][0]


def _polynorm(z, c):
  power = z
  h = c['weight'][0] * _normalise(power)
  for weight in c['weight'][1:]:
    power = power * z
    h = h + weight * _normalise(power)
  return h + c['bias'][0]


def _normalise(u):
  mean_square = jnp.mean(u * u, axis=-1, keepdims=True)
  # Not rsqrt: its derivative forms mean_square^-1.5 on its own, which is 0
  # in float32 for large rows; this one's passes through the middle.
  return u * (1.0 / jnp.sqrt(mean_square + _EPSILON))
