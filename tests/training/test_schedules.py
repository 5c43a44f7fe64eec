"""Learning rates: values worked out by hand, shape, and what is refused."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from t5x_variants import errors
from t5x_variants.training import schedules


@pytest.mark.parametrize(
  'step, rate',
  [
    (0, 0.1),  # 1 / sqrt(100) all through the warm-up
    (100, 0.1),
    (400, 0.05),
    (900, 1 / 30),  # the last tenth begins
    (950, 1 / np.sqrt(950) / 2),
    (999, 1 / np.sqrt(999) / 100),
    (1000, 0.0),
    (1500, 0.0),
  ],
)
def test_rsqrt_by_hand(step, rate):
  schedule = schedules.rsqrt(1000, warmup_steps=100)
  np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
  twice = schedules.rsqrt(1000, base_learning_rate=2.0, warmup_steps=100)
  np.testing.assert_allclose(twice(step), 2 * rate, rtol=1e-6)


@pytest.mark.parametrize(
  'step, rate',
  [
    (0, 0.05),  # the first of ten steps of warm-up, of 0.5 in all
    (4, 0.25),
    (9, 0.5),
    (500, 0.5),
    (900, 0.5),
    (950, 0.25),
    (1000, 0.0),
  ],
)
def test_constant_by_hand(step, rate):
  schedule = schedules.constant(1000, 0.5)
  np.testing.assert_allclose(schedule(step), rate, rtol=1e-6, atol=1e-9)


def test_constant_without_warm_up_and_decay_is_constant():
  schedule = schedules.constant(7, 0.5, warmup_fraction=0.0, decay_fraction=0.0)
  assert {float(schedule(step)) for step in range(9)} == {0.5}


def _rates(schedule, total):
  steps = jnp.asarray(
    sorted({0, 1, total, total + 5, *np.linspace(0, total, 50, dtype=int)})
  )
  return np.asarray(jax.vmap(schedule)(steps))


RUNS = {'total_steps': st.integers(1, 10**6), 'decay_fraction': st.floats(0, 1)}


@hypothesis.given(warmup_steps=st.integers(1, 10**5), **RUNS)
def test_rsqrt_never_rises_and_ends_at_zero(
  total_steps, warmup_steps, decay_fraction
):
  rates = _rates(
    schedules.rsqrt(
      total_steps, warmup_steps=warmup_steps, decay_fraction=decay_fraction
    ),
    total_steps,
  )
  assert np.all(np.isfinite(rates)) and np.all(rates >= 0)
  assert np.all(np.diff(rates) <= 1e-7 * rates[0])
  if decay_fraction > 0:
    assert rates[-1] == 0


@hypothesis.given(warmup_fraction=st.floats(0, 1), **RUNS)
def test_constant_rises_once_and_falls_once(
  total_steps, warmup_fraction, decay_fraction
):
  rates = _rates(
    schedules.constant(total_steps, 0.5, warmup_fraction, decay_fraction),
    total_steps,
  )
  assert np.all(np.isfinite(rates))
  assert np.all((rates >= 0) & (rates <= 0.5))
  if warmup_fraction + decay_fraction <= 1:
    falls = np.diff(rates) < -1e-6
    assert not np.any(np.diff(rates)[np.argmax(falls) :] > 1e-6) or not any(
      falls
    )


@pytest.mark.parametrize(
  'schedule',
  [
    schedules.rsqrt(1000, warmup_steps=100),
    schedules.constant(1000, 0.5),
    schedules.constant(1000, 0.5, 0.0, 0.0),
  ],
)
def test_traced_steps_give_the_same_float32(schedule):
  traced = jax.jit(schedule)
  for step in (0, 3, 100, 951, 1000):
    rate = traced(jnp.int32(step))
    assert rate.dtype == jnp.float32 and rate.shape == ()
    np.testing.assert_allclose(rate, schedule(step), rtol=1e-6)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: schedules.rsqrt(0), ['TRAIN_STEPS', 'is 0', 'at least 1']),
    (
      lambda: schedules.constant(-3, 1.0),
      ['TRAIN_STEPS', 'is -3', 'at least 1'],
    ),
    (
      lambda: schedules.rsqrt(10, decay_fraction=1.5),
      ['decay_fraction is 1.5', 'between 0 and 1'],
    ),
    (
      lambda: schedules.constant(10, 1.0, warmup_fraction=10),
      ['warmup_fraction is 10', 'between 0 and 1'],
    ),
    (
      lambda: schedules.rsqrt(10, warmup_steps=0),
      ['WARMUP_STEPS', 'is 0', 'at least 1'],
    ),
  ],
)
def test_a_wrong_value_is_named(make, words):
  with pytest.raises(errors.UserError) as error:
    make()
  for word in words:
    assert word in str(error.value)
