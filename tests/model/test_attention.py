"""Position biases, attention and its cache against written-out rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_variants import errors
from t5x_variants.model import attention

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def bucket(distance, bidirectional, buckets=32, farthest=128):
  """T5's rule for one distance, in exact integers where it is exact."""
  offset = 0
  if bidirectional:
    buckets //= 2
    offset = buckets if distance > 0 else 0
    distance = -abs(distance)
  steps = max(-distance, 0)
  exact = buckets // 2
  if steps < exact:
    return offset + steps
  ratio = math.log(steps / exact) / math.log(farthest / exact)
  # On an edge the rule is a matter of rounding: t5x's lands above it.
  far = exact + math.floor(ratio * (buckets - exact) + 1e-6)
  return offset + min(far, buckets - 1)


@pytest.mark.parametrize('bidirectional', [False, True])
def test_buckets(bidirectional):
  distance = np.arange(-600, 601)
  got = attention.relative_position_buckets(distance, bidirectional)
  assert got.tolist() == [bucket(int(d), bidirectional) for d in distance]


def test_position_biases_are_looked_up():
  module = attention.RelativePositionBiases(num_heads=3, bidirectional=True)
  distance = attention.distances(7)
  assert distance[2, 5] == 3
  variables = module.init(jax.random.key(0), distance)
  table = np.asarray(variables['params']['rel_embedding'])
  assert table.shape == (3, 32)
  got = module.apply({'params': variables['params']}, distance)
  buckets = attention.relative_position_buckets(distance, True)
  np.testing.assert_allclose(got, table[:, buckets], rtol=1e-6)


def formula(params, x, y, mask, bias, heads, width):
  """Attention in float64, one head at a time."""
  p = {k: np.asarray(v['kernel'], np.float64) for k, v in params.items()}
  q, k, v = x @ p['query'], y @ p['key'], y @ p['value']
  out = []
  for h in range(heads):
    part = slice(h * width, (h + 1) * width)
    logits = q[..., part] @ np.swapaxes(k[..., part], 1, 2) + bias[0, h]
    logits = np.where(mask[:, 0], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out.append(weights @ v[..., part])
  return np.concatenate(out, -1) @ p['out']


def attend(**choices):
  return attention.MultiHeadDotProductAttention(
    num_heads=2, head_dim=4, **choices
  )


@pytest.mark.parametrize('float32_logits', [False, True])
def test_attention_equals_the_formula(float32_logits):
  x, y, bias = normal(2, 3, 6), normal(2, 5, 6), normal(1, 2, 3, 5)
  mask = RNG.random((2, 1, 3, 5)) > 0.4
  mask[..., 0] = True
  module = attend(float32_logits=float32_logits)
  params = module.init(jax.random.key(0), x, y, deterministic=True)['params']

  def apply(params, bias):
    return module.apply(
      {'params': params}, x, y, mask, bias, deterministic=True
    )

  expected = formula(params, x, y, mask, bias, 2, 4)
  np.testing.assert_allclose(
    apply(params, bias), expected, rtol=1e-4, atol=1e-5
  )

  # The hand-written derivatives against finite differences of the formula.
  cotangent = normal(2, 3, 6)
  gradient = jax.grad(lambda b: (apply(params, b) * cotangent).sum())(bias)
  for at in [(0, 0, 0, 0), (0, 1, 2, 4), (0, 1, 1, 2)]:
    step = np.zeros(bias.shape)
    step[at] = 1e-5
    up, down = (
      (formula(params, x, y, mask, bias + s, 2, 4) * cotangent).sum()
      for s in (step, -step)
    )
    np.testing.assert_allclose(
      gradient[at], (up - down) / 2e-5, rtol=1e-3, atol=1e-5
    )


def test_fully_masked_queries_average():
  x = normal(1, 3, 6)
  module = attend()
  params = module.init(jax.random.key(0), x, x, deterministic=True)['params']
  y = module.apply(
    {'params': params}, x, x, np.zeros((1, 1, 3, 3), bool), deterministic=True
  )
  mean = x.mean(1, keepdims=True) @ params['value']['kernel']
  expected = np.broadcast_to(mean @ params['out']['kernel'], y.shape)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_initial_queries_are_scaled_down():
  x = np.zeros((1, 1, 256), np.float32)
  module = attention.MultiHeadDotProductAttention(num_heads=4, head_dim=64)
  params = module.init(jax.random.key(0), x, x, deterministic=True)['params']
  std = {k: float(v['kernel'].std()) for k, v in params.items()}
  expected = {'query': 1 / 128, 'key': 1 / 16, 'value': 1 / 16, 'out': 1 / 16}
  for name, value in expected.items():
    assert abs(std[name] / value - 1) < 0.02, name


def test_attention_dropout_is_one_mask_for_all_queries():
  x = normal(1, 1, 6)
  keys = normal(1, 40, 6)
  module = attend(dropout_rate=0.5)
  params = module.init(jax.random.key(0), x, keys, deterministic=True)
  y = module.apply(
    {'params': params['params']},
    np.repeat(x, 3, 1),
    keys,
    rngs={'dropout': jax.random.key(3)},
  )
  np.testing.assert_allclose(y[:, 1:], y[:, :-1], rtol=1e-5)
  still = module.apply(
    {'params': params['params']}, x, keys, deterministic=True
  )
  assert np.abs(y[:, :1] - still).max() > 1e-3


def test_cache_is_laid_out_as_in_t5x_and_refuses_other_lengths():
  x = normal(2, 5, 6)
  module = attend()
  by_distance = jnp.zeros((2, 9))
  variables = module.init(
    jax.random.key(0), x, x, decode=True, deterministic=True
  )
  shapes = jax.tree.map(lambda v: v.shape, variables['cache'])
  assert shapes == {
    'cached_key': (2, 2, 4, 5),
    'cached_value': (2, 2, 4, 5),
    'cache_index': (),
  }

  def step(x, by_distance):
    return module.apply(
      {k: variables[k] for k in ('params', 'cache')},
      x,
      x,
      by_distance=by_distance,
      decode=True,
      deterministic=True,
      mutable=['cache'],
    )

  _, changed = step(x[:, :1], by_distance)
  assert int(changed['cache']['cache_index']) == 1
  for wrong in ((x[:, :2], by_distance), (x[:, :1], jnp.zeros((2, 1)))):
    with pytest.raises(errors.UserError, match='max_decode_length=5'):
      step(*wrong)
