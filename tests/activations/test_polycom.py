"""PolyReLU and PolyNorm: exact special cases, scale, moments."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_variants import activations
from t5x_variants.activations import polycom

SHAPE = (8, 128)


def _of(activation, x):
  x = jnp.asarray(x, jnp.float32)
  return np.asarray(activation.fn(x, activation.init()), np.float64)


def _polyrelu(weight):
  activation = polycom.polyrelu(len(weight))
  c = {'weight': np.asarray(weight, np.float32), 'bias': np.zeros(1, 'f4')}
  return lambda z: activation.fn(z, c)


def test_polyrelu_has_relu_squares_and_polynomials_as_exact_cases():
  z = jnp.asarray(np.linspace(-5.0, 5.0, 401), jnp.float32)
  r = jnp.maximum(z, 0)
  np.testing.assert_array_equal(_polyrelu([1, 0, 0])(z), r)
  np.testing.assert_array_equal(_polyrelu([0, 1, 0])(z), r * r)
  f, g = _polyrelu([2, -3, 0.5]), _polyrelu([-2, -3, -0.5])
  # z^k = max(z, 0)^k + (-1)^k max(-z, 0)^k.
  np.testing.assert_allclose(
    f(z) + g(-z), 2 * z - 3 * z**2 + 0.5 * z**3, rtol=1e-5, atol=1e-5
  )


def test_one_polyrelu_layer_multiplies():
  x, y = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
  inputs = np.stack([x, y], -1)
  first = np.asarray([[1, -1, 1, -1, 0, 0], [1, -1, 0, 0, 1, -1]], np.float32)
  last = np.asarray([1, 1, -1, -1, -1, -1], np.float32) / 2
  hidden = _polyrelu([0, 1, 0])(jnp.asarray(inputs @ first))
  np.testing.assert_allclose(hidden @ last, x * y, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('order', [1, 3, 4])
def test_polynorm_sees_only_the_direction_of_a_large_row(order):
  activation = polycom.polynorm(order)
  z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) * 10
  one = _of(activation, z)
  np.testing.assert_allclose(_of(activation, 64 * z), one, atol=2e-6)
  assert np.max(np.abs(_of(activation, 1e-4 * z) - one)) > 0.1, 'epsilon'


def test_polynorm_starts_with_the_known_moments():
  z = np.random.default_rng(0).normal(size=(64, 4096))
  h = _of(activations.get('polynorm'), z)
  assert np.sqrt(np.mean(h**2)) == pytest.approx(0.711, abs=5e-3)
  assert np.mean(h) == pytest.approx(0.192, abs=5e-3)
