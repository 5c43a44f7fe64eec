"""Rational activations: published and fitted values, learning, noise."""

import functools

import activation_references as references
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_variants import activations, errors
from t5x_variants.activations import rational


def _of(activation, x):
  x = jnp.asarray(x, jnp.float32)
  return np.asarray(activation.fn(x, activation.init()), np.float64)


TARGETS = {
  'gelu': lambda x: np.real(references.gelu(x, {})),
  'swish': lambda x: x * references.sigmoid(x),
  'relu': lambda x: np.maximum(x, 0.0),
  'leaky_relu': lambda x: np.where(x < 0, 0.01 * x, x),
  'tanh': np.tanh,
  'sigmoid': references.sigmoid,
}


def _exact_gelu(x):
  return np.real(references.gelu_exact(x + 0j, {}))


def _worst(activation, name, limit):
  x = np.linspace(-limit, limit, 4001)
  return np.max(np.abs(_of(activation, x) - TARGETS[name](x)))


@pytest.mark.parametrize(
  'version, name, worst, values',
  [
    ('A', 'gelu', 4.1e-3, [-2.46, -0.452, 6.289, 12.46, 80.1]),
    ('A', 'swish', 1.2e-6, [-0.161, -0.022, 5.978, 9.840, 24.1]),
    ('A', 'relu', 3.0e-2, [-2.65, -0.699, 5.754, 9.033, 24.0]),
    ('A', 'leaky_relu', 3.0e-2, [-2.73, -0.754, 5.749, 9.019, 23.9]),
    ('A', 'tanh', 4.1e-5, [-0.981, -0.990, 0.990, 0.981, 1.42]),
    ('A', 'sigmoid', 1.9e-5, [-0.069, -0.008, 1.008, 1.069, 1.68]),
    ('B', 'gelu', 9.5e-4, [3.37, 1.46, -2.31, -6.30, -16.7]),
    ('D', 'gelu', 9.5e-4, [3.37, 1.46, -2.31, -6.30, -16.7]),
    ('B', 'relu', 3.4e-2, [-2.20, -0.609, 5.39, 7.80, 18.1]),
  ],
)
def test_published_coefficients_are_as_known(version, name, worst, values):
  # In float64: the figures are the fits', not those of float32.
  row = rational.load('published')[f'{version} 5/4'][name]
  function = references.rational(version)
  x = np.linspace(-3.0, 3.0, 4001)
  target = _exact_gelu if name == 'gelu' else TARGETS[name]
  error = np.max(np.abs(np.real(function(x + 0j, row)) - target(x)))
  assert error == pytest.approx(worst, rel=0.05)
  tails = np.asarray([-10.0, -6.0, 6.0, 10.0, 30.0])
  got = np.real(function(tails + 0j, row))
  np.testing.assert_allclose(got, values, rtol=5e-3, atol=6e-4)
  activation = rational.rational(
    version, approximates=name, coefficients='published'
  )
  for key, vector in activation.init().items():
    np.testing.assert_array_equal(vector, np.float32(row[key]))


def test_the_published_identity_of_version_a_is_the_published_fit():
  """The row of rational_activations 0.2.0 (PyPI), digit by digit."""
  numerator = [
    1.952558011965895e-18,
    1.0000000418848929,
    8.641766456193493e-11,
    8.232316849838465,
    1.0465271232039494e-10,
    1.1911050546350175,
  ]
  denominator = [
    1.2825296444093772e-07,
    8.232316768047744,
    1.3822412587561512e-08,
    1.191105054054555,
  ]
  assert rational.initial('A', (5, 4), 'identity', 'published') == (
    tuple(numerator),
    tuple(denominator),
  )
  found = rational.rational(
    approximates='identity', coefficients='published'
  ).init()
  np.testing.assert_array_equal(found['numerator'], np.float32(numerator))
  np.testing.assert_array_equal(found['denominator'], np.float32(denominator))
  # Of the others it is the exact one, with no coefficient but these.
  ramp, none = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)
  for version, expected in (('B', none), ('C', (0.9, *none)), ('D', none)):
    assert rational.initial(version, (5, 4), 'identity', 'published') == (
      ramp,
      expected,
    )
  with pytest.raises(errors.UserError, match=r'no published .* A 3/2 identity'):
    rational.initial('A', (3, 2), 'identity', 'published')


@pytest.mark.parametrize(
  'name, inner, outer',
  [
    ('gelu', 4e-3, 4e-3),
    ('swish', 5e-4, 1.3e-3),
    ('relu', 0.091, 0.091),
    ('leaky_relu', 0.091, 0.091),
    ('tanh', 4e-4, 9e-4),
    ('sigmoid', 5e-6, 2e-5),
  ],
)
def test_fitted_coefficients_are_near_and_have_sane_tails(name, inner, outer):
  fitted = rational.rational(approximates=name)
  assert _worst(fitted, name, 3.0) < inner
  assert _worst(fitted, name, 8.0) < outer
  x = np.linspace(8.5, 100.0, 200)
  right, left = _of(fitted, x), _of(fitted, -x)
  if name == 'sigmoid':
    assert np.all(right > 0.99) and np.all(right < 2.0)
    np.testing.assert_allclose(left, 1.0 - right, atol=1e-5)
  else:
    assert np.all(right > 0) and np.all(left < 0)
    assert np.all(right < 1.01 * x) and np.all(-left < 0.51 * x)
  assert np.all(np.diff(right) > 0), 'grows on the right'


@pytest.mark.parametrize('name', rational.FUNCTIONS)
@pytest.mark.parametrize('degrees', [(3, 2), (5, 4), (7, 6)])
def test_versions_start_as_the_same_function(degrees, name):
  x = np.linspace(-20.0, 20.0, 401)
  values = [_of(rational.rational(v, degrees, name), x) for v in 'ABCD']
  scale = np.max(np.abs(values[0]))
  for other in values[1:]:
    np.testing.assert_allclose(other, values[0], atol=1e-6 * scale)


@pytest.mark.parametrize('version', rational.VERSIONS)
def test_identity_start_learns(version):
  activation = rational.rational(version, approximates='identity')
  x = jnp.linspace(-3.0, 3.0, 101)
  np.testing.assert_allclose(activation.fn(x, activation.init()), x, rtol=1e-6)
  start = jax.tree.map(jnp.asarray, activation.init())

  def loss(coefficients):
    return jnp.mean((activation.fn(x, coefficients) - jnp.tanh(x)) ** 2)

  gradient = jax.grad(loss)(start)
  if version == 'A':
    assert np.all(np.abs(gradient['denominator']) > 1e-3)
  else:
    # Even powers under one |.|; the odd ones stand still by symmetry.
    assert np.any(np.abs(gradient['denominator']) > 1e-3)
  optimizer = optax.adam(1e-2)

  @jax.jit
  def train(coefficients):
    def step(carry, _):
      coefficients, state = carry
      updates, state = optimizer.update(jax.grad(loss)(coefficients), state)
      return (optax.apply_updates(coefficients, updates), state), None

    carry = (coefficients, optimizer.init(coefficients))
    return jax.lax.scan(step, carry, length=300)[0][0]

  trained = train(start)
  assert loss(trained) < 1e-2 * loss(start)
  assert np.any(np.abs(trained['denominator']) > 1e-2)


def test_noise_of_version_d_is_a_tenth_and_its_own():
  activation = rational.rational('D')
  coefficients = jax.tree.map(jnp.asarray, activation.init())
  keys = jax.random.split(jax.random.key(0), 200)
  perturb = functools.partial(activation.perturb, coefficients)
  draws = jax.jit(jax.vmap(perturb))(keys)
  ratios = np.concatenate(
    [draws[k][:, v != 0] / v[v != 0] for k, v in coefficients.items()], 1
  )
  assert ratios.shape == (200, 8)
  assert 0.9 <= ratios.min() < 0.91 and 1.09 < ratios.max() <= 1.1 + 1e-6
  np.testing.assert_allclose(ratios.mean(0), 1.0, atol=0.02)
  correlation = np.corrcoef(ratios.T) - np.eye(8)
  assert np.max(np.abs(correlation)) < 0.3, 'each coefficient has its own'
  noisy = perturb(keys[0])
  jax.tree.map(np.testing.assert_array_equal, noisy, perturb(keys[0]))
  assert activation.fn(jnp.ones((2, 3)), noisy).shape == (2, 3)
  for name in activations.names():
    assert activations.get(name).perturb is None
