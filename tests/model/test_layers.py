"""Norm, embedding and tied logits against written-out rules."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_variants.model import layers

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def test_norm_rescales_and_does_not_shift():
  x = 5 + normal(2, 3, 8)
  module = layers.LayerNorm()
  params = {'scale': normal(8)}
  got = module.apply({'params': params}, x)
  x = x.astype(np.float64)
  size = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(got, x / size * params['scale'], rtol=1e-5)
  assert (
    layers.LayerNorm(dtype='bfloat16').apply({'params': params}, x).dtype
    == jnp.bfloat16
  )


def test_embedding_is_a_lookup_with_its_gradient():
  module = layers.Embed(11, 4)
  table = normal(11, 4)
  tokens = np.array([[3, 3, 10], [0, 7, 3]])
  cotangent = normal(2, 3, 4)

  def look_up(table):
    return module.apply({'params': {'embedding': table}}, tokens)

  np.testing.assert_array_equal(look_up(table), table[tokens])
  gradient = jax.grad(lambda t: (look_up(t) * cotangent).sum())(table)
  expected = np.zeros_like(table)
  np.add.at(expected, tokens, cotangent)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_both_forms_of_the_embedding_lower():
  module = layers.Embed(11, 4)
  variables = {'params': {'embedding': normal(11, 4)}}
  lookup = jax.jit(lambda v, t: module.apply(v, t))
  traced = lookup.trace(variables, np.zeros((1, 2), np.int32))
  cpu = traced.lower(lowering_platforms=('cpu',)).as_text()
  tpu = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert 'stablehlo.gather' in cpu and 'dot_general' not in cpu
  assert 'dot_general' in tpu and 'stablehlo.gather' not in tpu


def test_tied_logits_are_scaled_and_float32():
  module = layers.Embed(11, 4, dtype=jnp.bfloat16)
  table, x = normal(11, 4), normal(1, 2, 4)
  got = module.apply({'params': {'embedding': table}}, x, method='attend')
  np.testing.assert_allclose(got, x @ table.T / 2, rtol=1e-5, atol=1e-6)
  assert got.dtype == jnp.float32
