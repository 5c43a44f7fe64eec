"""The feed-forward block against its formula, and what it declares."""

import activation_references
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import mlp_block
from flax import traverse_util
from flax.linen import partitioning

from t5x_variants import activations, errors, kernels
from t5x_variants.model import mlp

B, L, D, F = 2, 3, 6, 12
NAMES = activations.names()


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((B, L, D)).astype(np.float32)


def initialised(**choices):
  block = mlp_block(mlp_dim=F, **choices)
  variables = block.init(jax.random.key(1), inputs(), deterministic=True)
  return block, variables


def formula(name, params, x, gated):
  """The block in float64, from the formulas the activations are tested by."""
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  c = {k: list(v) for k, v in p.get('activation', {}).items()}
  x = np.asarray(x, np.float64)
  z = x @ p['wi_0' if gated else 'wi']['kernel']
  z = z.reshape(B * L, F)
  h = np.real(activation_references.TABLE[name](z, c)).reshape(B, L, F)
  if gated:
    h = h * (x @ p['wi_1']['kernel'])
  return h @ p['wo']['kernel']


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_equals_the_formula(name, gated):
  if name not in activation_references.TABLE:
    pytest.skip(f'{name} has no second formula')
  block, variables = initialised(activation=name, gated=gated)
  y = block.apply({'params': variables['params']}, inputs(), deterministic=True)
  expected = formula(name, variables['params'], inputs(), gated)
  np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_declares_names_shapes_axes(name, gated):
  _, variables = initialised(activation=name, gated=gated, dtype='bfloat16')
  expected = {
    f'{wi}/kernel': ((D, F), ('embed', 'mlp'))
    for wi in (('wi_0', 'wi_1') if gated else ('wi',))
  }
  expected['wo/kernel'] = (F, D), ('mlp', 'embed')
  for key, value in activations.get(name).init().items():
    expected[f'activation/{key}'] = value.shape, ('mlp_activations',)
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  axes = traverse_util.flatten_dict(
    dict(partitioning.get_axis_names(variables['params_axes'])), sep='/'
  )
  assert {k: (v.shape, tuple(axes[k])) for k, v in params.items()} == expected
  assert {v.dtype for v in params.values()} == {jnp.dtype('float32')}


def test_kernels_start_with_unit_gain():
  block = mlp_block(mlp_dim=512, gated=True)
  x = np.zeros((1, 1, 256), np.float32)
  params = block.init(jax.random.key(0), x, deterministic=True)['params']
  for name, fan_in in (('wi_0', 256), ('wi_1', 256), ('wo', 512)):
    kernel = np.asarray(params[name]['kernel']) * np.sqrt(fan_in)
    assert abs(kernel.std() - 1) < 0.01
    # A normal cut off at two of its own deviations.
    assert 2.2 < np.abs(kernel).max() < 2.3
  assert not np.array_equal(params['wi_0']['kernel'], params['wi_1']['kernel'])


@pytest.mark.parametrize(
  'name', [n for n in NAMES if activations.get(n).init()]
)
def test_gradients_reach_every_coefficient(name):
  block, variables = initialised(activation=name, gated=True)

  def loss(params):
    y = block.apply({'params': params}, inputs(), deterministic=True)
    return jnp.sum(y * inputs(2))

  gradients = jax.grad(loss)(variables['params'])['activation']
  for gradient in jax.tree.leaves(gradients):
    assert gradient.dtype == jnp.float32
    assert np.all(np.isfinite(gradient)) and np.all(gradient != 0)


def test_bfloat16_rounds_the_hidden_once():
  # silu(z) * u of 8-bit numbers: with each factor rounded the result would
  # differ from the rounded exact product in a good part of all places.
  rng = np.random.default_rng(0)
  eye = jnp.eye(64, dtype=jnp.bfloat16)
  wi = [jnp.asarray(rng.standard_normal((64, 64)), jnp.bfloat16) for _ in 'vu']
  swish = activations.get('swish')
  h = kernels.ffn(eye, wi, eye, {}, swish, True)
  z, u = (w.astype(jnp.float32) for w in wi)
  expected = (z * jax.nn.sigmoid(z) * u).astype(jnp.bfloat16)
  assert h.dtype == jnp.bfloat16
  assert np.mean(np.asarray(h != expected)) < 0.01


def test_dropout_is_the_rngs_and_one_mask_for_all_positions():
  block, variables = initialised(activation='relu', dropout_rate=0.5)
  params = {'params': variables['params']}

  def apply(seed, **kwargs):
    rngs = {'dropout': jax.random.key(seed)}
    return np.asarray(block.apply(params, inputs(), rngs=rngs, **kwargs))

  assert np.array_equal(apply(0), apply(0))
  assert not np.array_equal(apply(0), apply(1))
  still = apply(0, deterministic=True)
  assert np.array_equal(still, apply(1, deterministic=True))
  same = np.broadcast_to(inputs()[:, :1], (B, L, D))
  y = block.apply(params, same, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), rtol=1e-5)


def test_perturbs_coefficients_when_dropout_is_on_only():
  calls = []

  def perturb(coefficients, key):
    calls.append(key)
    return jax.tree.map(lambda c: 2 * c, coefficients)

  noisy = activations.Activation(
    name='noisy',
    fn=lambda z, c: c['scale'][0] * z,
    init=lambda: {'scale': np.ones(1, np.float32)},
    kind='elementwise',
    paper='',
    perturb=perturb,
  )
  block, variables = initialised(activation=noisy)
  params = {'params': variables['params']}
  still = block.apply(params, inputs(), deterministic=True)
  assert not calls
  moved = block.apply(params, inputs(), rngs={'dropout': jax.random.key(0)})
  assert len(calls) == 1
  np.testing.assert_allclose(moved, 2 * still, rtol=1e-6)


def test_preactivations_can_be_looked_at():
  block, variables = initialised(activation='gelu', gated=True)
  params = {'params': variables['params']}
  _, seen = block.apply(
    params, inputs(), deterministic=True, mutable=['intermediates']
  )
  (z,) = seen['intermediates']['preactivation']
  kernel = variables['params']['wi_0']['kernel']
  np.testing.assert_allclose(z, inputs() @ kernel, rtol=1e-4, atol=1e-5)
  assert 'intermediates' not in variables


@pytest.mark.parametrize('width', [3072, 1536, 4224, 7680, 15360])
def test_gated_and_ungated_cost_the_same(width):
  assert 3 * mlp.width(width, True) == 2 * mlp.width(width, False) == 2 * width


def test_width_must_divide():
  assert mlp.width(1024, False) == 1024
  with pytest.raises(errors.UserError, match=r'mlp_dim=1024, .* 1023 or 1026'):
    mlp.width(1024, True)


@pytest.mark.usefixtures('unchecked')
def test_refuses_operands_that_do_not_fit():
  x, wi, wo = jnp.ones((B, D)), jnp.ones((D, F)), jnp.ones((F, D))
  gelu, polyrelu = activations.get('gelu'), activations.get('polyrelu')
  with pytest.raises(errors.UserError, match='takes 2 input matrices, got 1'):
    kernels.ffn(x, wi, wo, {}, gelu, True)
  with pytest.raises(errors.UserError, match='takes 1 input matrices, got 2'):
    kernels.ffn(x, (wi, wi), wo, {}, gelu, False)
  with pytest.raises(errors.UserError, match='do not fit'):
    kernels.ffn(x, wi.T, wo, {}, gelu, False)
  with pytest.raises(errors.UserError, match=r"'bias', 'weight'.*got"):
    kernels.ffn(x, wi, wo, {}, polyrelu, False)
  with pytest.raises(errors.UserError, match='gelu'):
    initialised(activation='gellu')
