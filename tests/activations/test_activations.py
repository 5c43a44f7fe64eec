"""One suite over the whole activation table; makers and their errors.

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
  close(dz, expected[1], tolerance, 'derivative')
  for (key, k), want in expected[2].items():
    assert dc[key][k].dtype == jnp.float32
    # A coefficient is float32 whatever z is.
    close(dc[key][k], want, min(tolerance, 4e-6), f'{key}[{k}]')


@each
@pytest.mark.parametrize('limit', [3.0, 30.0])
def test_follows_its_formula_in_float32(activation, reference, limit):
  z = jnp.asarray(_grid(limit), jnp.float32)
  # The long sums of degrees 7/6 lose a digit more than those of the table.
  tolerance = 2e-6 if '(7, 6)' in activation.name else 1e-6
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
  max_examples=2, deadline=None, derandomize=True, database=None
)
@hypothesis.given(data=hypothesis.strategies.data())
def test_follows_its_formula_for_any_input(activation, reference, data):
  # No subnormal: a processor may take it for 0, as a TPU does always.
  element = hypothesis.strategies.floats(
    -50, 50, width=32, allow_subnormal=False
  )
  row = data.draw(
    hypothesis.extra.numpy.arrays(np.float32, 16, elements=element)
  )
  # The other rows are a grid: errors are relative to the function's scale,
  # which a drawn row, such as one of sigmoid's far end, need not reach.
  z = _grid(3.0).astype(np.float32)
  z[::2] = np.tile(row, 64).reshape(SHAPE)[::2]
  _compare(activation, reference, jnp.asarray(z), 4e-6)


@each_name
def test_kind_says_whether_elements_meet(name):
  activation = activations.get(name)
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


# Makers, table, and what a user may get wrong.


@pytest.mark.usefixtures('unchecked')
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
    (
      lambda: activations.get('gleu'),
      "did you mean 'gelu'.*are relu, ",
    ),
    (lambda: activations.get(3), 'no activation 3; allowed'),
    (lambda: activations.register('relu'), "not 'relu'; make one with"),
    (
      lambda: activations.define('x', None, paper='', kind='column'),
      "kind 'column'; allowed are elementwise, rowwise",
    ),
    (lambda: rational.rational('E'), "version 'E'; allowed are A, B, C, D"),
    (lambda: rational.rational(degrees=(5, -4)), r'\(5, -4\); allowed is a'),
    (
      lambda: rational.rational(degrees=5),
      'rational are 5; allowed is a pair',
    ),
    (lambda: rational.rational(degrees='5/4'), "are '5/4'; allowed is"),
    (lambda: rational.rational(degrees=(5, 4.0)), r'4\.0\); allowed is'),
    (
      lambda: rational.rational(approximates='silu'),
      "start as 'silu'; allowed are gelu, relu",
    ),
    (
      lambda: rational.rational(coefficients='mine'),
      "coefficients 'mine'; allowed are fitted, published, or a pair",
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
    (lambda: polycom.polynorm(0), 'order of polynorm is 0; .* from 1 up'),
    (lambda: polycom.polyrelu(-1), 'order of polyrelu is -1'),
    (lambda: polycom.polyrelu(2.0), r'order of polyrelu is 2\.0'),
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
@pytest.mark.usefixtures('unchecked')
def test_a_slip_is_named(call, message):
  with pytest.raises(errors.UserError, match=message) as error:
    call()
  assert str(error.value)[0].isupper() and str(error.value)[-1] == '.'
