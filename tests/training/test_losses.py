"""Cross entropy against float64 numpy: smoothing, z-loss, padding, gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_variants.training import losses

OPTIONS = [(0.0, 0.0), (0.0, 1e-4), (0.1, 0.0), (0.1, 1e-2)]


@pytest.fixture
def tokens():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 5, 11)).astype(np.float32) * 4
  targets = rng.integers(0, 11, (3, 5)).astype(np.int32)
  weights = np.array(
    [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32
  )
  return logits, targets, weights


def reference(logits, targets, weights, smoothing, z_loss):
  """The definition, in float64: objective, nats and z-loss, each summed."""
  x = logits.astype(np.float64)
  log_z = np.log(np.sum(np.exp(x), axis=-1))
  log_p = x - log_z[..., None]
  vocab = x.shape[-1]
  q = np.full(x.shape, smoothing / (vocab - 1))
  np.put_along_axis(q, targets[..., None], 1 - smoothing, axis=-1)
  entropy = -np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0), -1)
  nats = -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  penalty = z_loss * log_z**2
  objective = -np.sum(q * log_p, axis=-1) - entropy + penalty
  return tuple(np.sum(v * weights) for v in (objective, nats, penalty))


@pytest.mark.parametrize('smoothing, z_loss', OPTIONS)
def test_values_are_the_definition(tokens, smoothing, z_loss):
  objective, sums = jax.jit(
    lambda *args: losses.cross_entropy(
      *args, label_smoothing=smoothing, z_loss=z_loss
    )
  )(*tokens)
  wanted, nats, penalty = reference(*tokens, smoothing, z_loss)
  np.testing.assert_allclose(objective, wanted, rtol=1e-6)
  # Reported without either, so that runs with and without can be compared.
  np.testing.assert_allclose(sums['loss'], nats, rtol=1e-6)
  np.testing.assert_allclose(sums['z_loss'], penalty, rtol=1e-6)
  logits, targets, weights = tokens
  right = np.sum((np.argmax(logits, -1) == targets) * weights)
  assert sums['correct'] == right and sums['weights'] == weights.sum()


@pytest.mark.parametrize('smoothing, z_loss', OPTIONS)
def test_gradient_is_the_definition_s(tokens, smoothing, z_loss):
  logits, targets, weights = tokens
  gradient = jax.grad(
    lambda x: losses.cross_entropy(
      x, targets, weights, label_smoothing=smoothing, z_loss=z_loss
    )[0]
  )(logits)
  rng = np.random.default_rng(1)
  for _ in range(4):
    along = rng.normal(size=logits.shape)
    ends = [
      reference(
        logits.astype(np.float64) + sign * 1e-5 * along,
        targets,
        weights,
        smoothing,
        z_loss,
      )[0]
      for sign in (1, -1)
    ]
    np.testing.assert_allclose(
      np.sum(gradient * along), (ends[0] - ends[1]) / 2e-5, rtol=2e-5
    )
  assert not np.any(gradient[weights == 0])


def test_padding_may_hold_anything(tokens):
  logits, targets, weights = tokens
  other = np.where(weights[..., None] > 0, logits, 7.0 * logits[::-1])
  moved = np.where(weights > 0, targets, 0)
  for wanted, got in zip(
    jax.tree.leaves(losses.cross_entropy(*tokens, z_loss=1e-2)),
    jax.tree.leaves(losses.cross_entropy(other, moved, weights, z_loss=1e-2)),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_perfect_model_costs_nothing(smoothing):
  vocab = 11
  q = np.full((1, 1, vocab), smoothing / (vocab - 1))
  q[..., 3] = 1 - smoothing
  logits = np.log(np.maximum(q, 1e-30)).astype(np.float32)
  objective, _ = losses.cross_entropy(
    logits, np.array([[3]]), np.ones((1, 1)), label_smoothing=smoothing
  )
  np.testing.assert_allclose(objective, 0.0, atol=1e-6)


def test_large_and_bfloat16_logits_stay_finite(tokens):
  logits, targets, weights = tokens
  for x in (logits * 1e4, jnp.asarray(logits, jnp.bfloat16)):
    objective, sums = losses.cross_entropy(x, targets, weights, z_loss=1e-4)
    assert objective.dtype == jnp.float32
    assert np.all(np.isfinite([objective, *sums.values()]))


@pytest.mark.parametrize('smoothing, z_loss', OPTIONS)
def test_agrees_with_t5x(tokens, smoothing, z_loss, t5x_module):
  theirs = t5x_module('t5x.losses')
  objective, sums = losses.cross_entropy(
    *tokens, label_smoothing=smoothing, z_loss=z_loss
  )
  total, z_total, weight = theirs.compute_weighted_cross_entropy(
    *tokens, label_smoothing=smoothing, z_loss=z_loss
  )
  np.testing.assert_allclose(objective, total, rtol=1e-6)
  np.testing.assert_allclose(sums['z_loss'], z_total, rtol=1e-6)
  np.testing.assert_allclose(sums['weights'], weight)
