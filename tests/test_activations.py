"""One suite over the whole activation table, then what each family promises.

Every entry, and the makers' options beside it, is compared with an independent
float64 formula (`activation_references.py`): value, derivative and the
derivative of each coefficient.
"""

import functools

import activation_references as references
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_variants import activations, errors
from t5x_variants.activations import polycom, rational, registry

SHAPE = (8, 128)


def _variants():
  """Yields (id, activation, reference) of the table and of options."""
  for name in activations.names():
    yield name, activations.get(name), references.TABLE[name]
  options = [
    *(dict(version=v) for v in 'BCD'),
    # Not B's gelu: its kinks turn rounding of z into errors of any size.
    *(
      dict(version=v, coefficients='published', approximates='swish')
      for v in 'BCD'
    ),
    dict(coefficients='published'),
    *(dict(approximates=f) for f in rational.FUNCTIONS if f != 'gelu'),
    *(dict(version=v, approximates='identity') for v in 'BC'),
    *(dict(degrees=d, version='B') for d in ((3, 2), (7, 6))),
    dict(degrees=(7, 6), approximates='tanh'),
    dict(degrees=(7, 6), approximates='identity', version='C'),
    dict(degrees=(8, 7), approximates='identity'),
    dict(degrees=(2, 0), approximates='identity'),
    dict(degrees=(0, 0), coefficients=([2.0], [])),
    dict(degrees=(0, 2), coefficients=([2.0], [-1.0, 0.5])),
    dict(degrees=(1, 2), coefficients=([0.5, 1.0], [-1.0, 0.5])),
    dict(
      degrees=(2, 2), version='B', coefficients=([0.0, 1.0, 0.5], [-1.0, 0.5])
    ),
  ]
  for option in options:
    activation = rational.rational(**option)
    version = option.get('version', 'A')
    yield str(option), activation, references.rational(version)
  for order in (1, 2, 4):
    yield f'polyrelu{order}', polycom.polyrelu(order), references.polyrelu
    yield f'polynorm{order}', polycom.polynorm(order), references.polynorm


VARIANTS = list(_variants())
each = pytest.mark.parametrize(
  'activation, reference',
  [v[1:] for v in VARIANTS],
  ids=[v[0] for v in VARIANTS],
)
each_name = pytest.mark.parametrize('name', activations.names())


def _grid(limit):
  """Even points over [-limit, limit], 0 among them, in shuffled rows."""
  points = np.linspace(-limit, limit, SHAPE[0] * SHAPE[1] - 1)
  points = np.append(points, 0.0)
  return np.random.default_rng(0).permutation(points).reshape(SHAPE)


def _tiles(activation):
  """The initial coefficients, each as a tile of z's shape, as kernels do."""
  return {
    key: [jnp.full(SHAPE, value) for value in values]
    for key, values in activation.init().items()
  }


def _pull_back(activation, z, coefficients, cotangent):
  h, pull = jax.vjp(activation.fn, z, coefficients)
  return h, *pull(cotangent)


def _compare(activation, reference, z, tolerance, scale=None):
  """Value and derivatives against the reference, relative to their scale."""
  rowwise = activation.kind == 'rowwise'
  cotangent = jnp.ones(SHAPE, z.dtype)
  if rowwise:
    noise = np.random.default_rng(1).normal(size=SHAPE)
    cotangent = jnp.asarray(noise, z.dtype)
  h, dz, dc = _pull_back(activation, z, _tiles(activation), cotangent)
  assert h.dtype == dz.dtype == z.dtype
  expected = references.derivatives(
    reference, activation.kind, z, activation.init(), cotangent
  )

  def close(got, want, tolerance, what):
    got = np.asarray(got, np.float64)
    scaled = scale(want) if scale else np.max(np.abs(want))
    error = np.max(np.abs(got - want) / np.maximum(scaled, 1e-30))
    assert error <= tolerance, f'{what}: off by {error} of its scale'

  close(h, expected[0], tolerance, 'value')
  close(dz, expected[1], 2 * tolerance, 'derivative')
  for (key, k), want in expected[2].items():
    assert dc[key][k].dtype == jnp.float32
    # A coefficient is float32 whatever z is.
    close(dc[key][k], want, min(tolerance, 4e-6), f'{key}[{k}]')


@each
@pytest.mark.parametrize('limit', [3.0, 30.0])
def test_follows_its_formula_in_float32(activation, reference, limit):
  z = jnp.asarray(_grid(limit), jnp.float32)
  # Between 3 and 6 gelu's derivative has z^3 times what tanh lacks from 1.
  tolerance = 2e-6 if activation.name == 'gelu' else 1e-6
  _compare(activation, reference, z, tolerance)


@each
def test_follows_its_formula_in_bfloat16(activation, reference):
  z = jnp.asarray(_grid(10.0), jnp.bfloat16)
  _compare(activation, reference, z, 1e-2)


@each
def test_follows_its_formula_from_tiny_to_huge(activation, reference):
  points = np.geomspace(1e-20, 1e4, 512)
  z = jnp.asarray(np.stack([points, -points], 1).reshape(SHAPE), jnp.float32)

  def scale(want):
    # The larger of z and -z, and of what the function reaches on [-1, 1].
    pairs = np.max(np.abs(want).reshape(-1, 2), axis=1)
    pairs = np.maximum(pairs, np.max(pairs[points < 1.0]))
    return np.repeat(pairs, 2).reshape(SHAPE)

  rowwise = activation.kind == 'rowwise'
  _compare(activation, reference, z, 1e-5, None if rowwise else scale)


@each
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_is_finite_for_any_row(activation, reference, dtype):
  del reference
  z = np.zeros(SHAPE)
  z[1], z[2], z[3] = 1e4, -1e4, 1e-30
  z[4, 0], z[5, 7] = 1e4, -1e4
  z[6] = np.geomspace(1e-38, 1e4, SHAPE[1])
  z[7] = -z[6]
  coefficients = jax.tree.map(jnp.asarray, activation.init())
  out = _pull_back(
    activation, jnp.asarray(z, dtype), coefficients, jnp.ones(SHAPE, dtype)
  )
  for leaf in jax.tree.leaves(out):
    assert np.all(np.isfinite(np.asarray(leaf, np.float64)))


@each
@hypothesis.settings(
  max_examples=5, deadline=None, derandomize=True, database=None
)
@hypothesis.given(data=hypothesis.strategies.data())
def test_follows_its_formula_for_any_input(activation, reference, data):
  element = hypothesis.strategies.floats(-50, 50, width=32)
  row = data.draw(
    hypothesis.extra.numpy.arrays(np.float32, 16, elements=element)
  )
  z = np.tile(row, 64).reshape(SHAPE)
  _compare(activation, reference, jnp.asarray(z), 4e-6)


@each
def test_kind_says_whether_elements_meet(activation, reference):
  del reference
  z = jnp.linspace(-2.0, 2.0, 8)
  moved = z.at[0].set(1.5)
  change = activation.fn(moved, activation.init()) - activation.fn(
    z, activation.init()
  )
  assert bool(np.any(change[1:])) == (activation.kind == 'rowwise')


@each_name
def test_propagates_nan(name):
  activation = activations.get(name)
  z = jnp.full((4,), jnp.nan)
  assert np.all(np.isnan(activation.fn(z, activation.init())))


@each_name
def test_float64_stays_float64(name):
  activation = activations.get(name)
  with jax.enable_x64(True):
    z = jnp.asarray(_grid(3.0))
    assert z.dtype == jnp.float64
    got = activation.fn(z, activation.init())
    c = {k: np.float64(v) for k, v in activation.init().items()}
    want = references.TABLE[name](np.asarray(z) + 0j, c)
  np.testing.assert_allclose(got, np.real(want), rtol=1e-9, atol=1e-12)


@each_name
def test_record_is_complete(name):
  activation = activations.get(name)
  assert activation.name == name
  assert activation.kind in registry.KINDS
  assert any(c.isdigit() for c in activation.paper), 'a paper has a year'
  first = activation.init()
  for vector in first.values():
    assert vector.dtype == np.float32 and vector.ndim == 1 and vector.size
    vector[:] = -7.0
  for vector in activation.init().values():
    assert not np.any(vector == -7.0), 'init() hands out fresh arrays'
  assert activations.get(activation) is activation
  assert hash(activation) == hash(activations.get(name))


def test_derivatives_at_kinks_are_the_documented_ones():
  slope = {
    name: float(jax.grad(lambda z, a=a: a.fn(z, a.init()))(0.0))
    for name, a in ((n, activations.get(n)) for n in ('relu', 'xielu'))
  }
  assert slope == {'relu': 0.0, 'xielu': 0.5}
  a = rational.rational('A', (1, 1), coefficients=([1.0, 0.0], [1.0]))
  # 1 / (1 + |z|): the branch z >= 0.
  assert float(jax.grad(lambda z: a.fn(z, a.init()))(0.0)) == -1.0


# Rational: versions, sets of coefficients, learning.


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
  x = _grid(20.0)
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


# PolyReLU and PolyNorm.


def _polyrelu(weight):
  activation = polycom.polyrelu(len(weight))
  c = {'weight': np.asarray(weight, np.float32), 'bias': np.zeros(1, 'f4')}
  return lambda z: activation.fn(z, c)


def test_polyrelu_has_relu_squares_and_polynomials_as_exact_cases():
  z = jnp.asarray(_grid(5.0), jnp.float32)
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


# Makers, table, and what a user may get wrong.


def test_equal_options_give_the_identical_activation():
  assert rational.rational() is activations.get('rational')
  assert rational.rational('A', [5, 4], approximates='gelu') is (
    rational.rational(degrees=(5, 4))
  )
  given = [[0.0, 1.0], np.asarray([0.5])]
  assert rational.rational(degrees=(1, 1), coefficients=given) is (
    rational.rational(degrees=[1, 1], coefficients=((0, 1), (0.5,)))
  )
  assert polycom.polynorm(order=3) is activations.get('polynorm')
  assert polycom.polyrelu(4) is polycom.polyrelu(order=4)


def test_jit_compiles_once_for_equal_options():
  count = 0

  @functools.partial(jax.jit, static_argnames='activation')
  def apply(z, coefficients, activation):
    nonlocal count
    count += 1
    return activation.fn(z, coefficients)

  for _ in range(2):
    activation = rational.rational(version='B')
    apply(jnp.ones(4), activation.init(), activation)
  assert count == 1


def test_register_adds_one_row(monkeypatch):
  monkeypatch.setattr(registry, '_TABLE', dict(registry._TABLE))
  cube = activations.define(
    'cube',
    lambda z, c: c['scale'][0] * z**3,
    paper='2026',
    initial={'scale': [2.0]},
  )
  assert activations.register(cube) is cube
  assert activations.names()[-1] == 'cube'
  got = activations.get('cube').fn(jnp.full(3, 2.0, jnp.bfloat16), cube.init())
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, 16.0)
  with pytest.raises(errors.UserError, match="'cube' is registered already"):
    activations.register(cube)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: activations.get('gleu'), "did you mean 'gelu'.*allowed: relu, "),
    (lambda: activations.get(3), 'unknown activation 3; allowed'),
    (lambda: activations.register('relu'), "not 'relu'; make one with"),
    (
      lambda: activations.define('x', None, paper='', kind='column'),
      "kind 'column'; allowed: elementwise, rowwise",
    ),
    (lambda: rational.rational('E'), "version 'E'; allowed: A, B, C, D"),
    (lambda: rational.rational(degrees=(5, -4)), r'\(5, -4\): allowed is a'),
    (lambda: rational.rational(degrees=5), 'degrees 5: allowed is a pair'),
    (lambda: rational.rational(degrees='5/4'), "degrees '5/4': allowed is"),
    (lambda: rational.rational(degrees=(5, 4.0)), r'4\.0\): allowed is'),
    (
      lambda: rational.rational(approximates='silu'),
      "start as 'silu'; allowed: gelu, relu",
    ),
    (
      lambda: rational.rational(coefficients='mine'),
      "coefficients 'mine'; allowed: fitted, published, or a pair",
    ),
    (lambda: rational.rational(coefficients=[1.0]), 'allowed are .*a pair'),
    (
      lambda: rational.rational(degrees=(9, 8)),
      'for 9/8 gelu.*only for: .*5/4 gelu.*tools/fit_rational.py '
      '--degrees 9/8 --approximates gelu',
    ),
    (
      lambda: rational.rational(degrees=(3, 2), coefficients='published'),
      "no published .* for A 3/2 gelu, only for: .*A 5/4.*'fitted'",
    ),
    (
      lambda: rational.rational(degrees=(0, 2), approximates='identity'),
      r'\(0, 2\) cannot start as identity',
    ),
    (
      lambda: rational.rational('C', (1, 1), coefficients=([0, 1], [1])),
      'has 2 numerator and 2 denominator coefficients, but was given 2 and 1',
    ),
    (lambda: polycom.polynorm(0), 'polynorm of order 0: .* from 1 up'),
    (lambda: polycom.polyrelu(-1), 'polyrelu of order -1'),
    (lambda: polycom.polyrelu(2.0), r'polyrelu of order 2\.0'),
    (
      lambda: activations.get('polynorm').fn(
        jnp.ones(3), polycom.polynorm(2).init()
      ),
      "lengths {'weight': 3, 'bias': 1}, but was given {'weight': 2",
    ),
    (
      lambda: activations.get('rational').fn(jnp.ones(3), {}),
      "'numerator': 6, 'denominator': 4}, but was given {}",
    ),
  ],
)
def test_a_slip_is_named(call, message):
  with pytest.raises(errors.UserError, match=message):
    call()
