"""Learning rates as functions of the step.

A schedule is what optax means by it: step (int, from 0) -> rate (float32).
Those that optax has (cosine, piecewise, ...) are named in gin by their import
path, `@optax.warmup_cosine_decay_schedule()`.
"""

import jax.numpy as jnp
import optax

from t5x_variants import errors


def _check(total_steps: int, **fractions: float) -> None:
  if total_steps < 1:
    raise errors.UserError(
      f'total_steps (TRAIN_STEPS) is {total_steps}; give at least 1.'
    )
  for name, value in fractions.items():
    if not 0 <= value <= 1:
      raise errors.UserError(
        f'{name} is {value}; it is a share of all steps: give a number '
        'between 0 and 1.'
      )


def _last_part(step, total_steps: int, decay_fraction: float):
  """1, then a straight line to 0 over the last `decay_fraction` of the run."""
  if decay_fraction == 0:
    return 1.0
  # A share of less than one step is one step.
  left = (total_steps - step) / max(1.0, decay_fraction * total_steps)
  return jnp.clip(left, 0.0, 1.0)


def rsqrt(
  total_steps: int,
  base_learning_rate: float = 1.0,
  warmup_steps: int = 10_000,
  decay_fraction: float = 0.1,
) -> optax.Schedule:
  """Inverse square root: base / sqrt(max(step, warmup)), then down to 0.

  Constant during the warm-up, as T5 has it. With Adafactor the rate is
  relative to each parameter's own scale.

  References:
    GLU paper (arXiv:2002.05202), section 3.2: linear decay to 0 over the
    final 10 %. The warm-up of 10,000 steps is T5's.

  Args:
    total_steps: steps of the whole run.
    base_learning_rate: factor in front.
    warmup_steps: steps during which the rate stays at base / sqrt(warmup).
    decay_fraction: share of the run over which the rate falls to 0.
  """
  _check(total_steps, decay_fraction=decay_fraction)
  if warmup_steps < 1:
    raise errors.UserError(
      f'warmup_steps (WARMUP_STEPS) is {warmup_steps}; give at least 1: the '
      'rate before it is 1 / sqrt(warmup_steps).'
    )

  def schedule(step):
    rate = base_learning_rate / jnp.sqrt(jnp.maximum(step, warmup_steps))
    return rate * _last_part(step, total_steps, decay_fraction)

  return schedule


def constant(
  total_steps: int,
  base_learning_rate: float,
  warmup_fraction: float = 0.01,
  decay_fraction: float = 0.1,
) -> optax.Schedule:
  """Linear warm-up, constant, then optionally a line down to 0.

  In pretraining RAFT gave its rational coefficients `warmup_fraction` 0.01 and
  `decay_fraction` 0, its weights 0.01 and 0.99; in fine-tuning it gave both 0
  and 1: a line down to 0 from the first step on.

  Args:
    total_steps: steps of the whole run.
    base_learning_rate: the constant rate.
    warmup_fraction: share of the run over which the rate rises from 0.
    decay_fraction: share of the run over which the rate falls to 0.
  """
  _check(
    total_steps,
    warmup_fraction=warmup_fraction,
    decay_fraction=decay_fraction,
  )
  warmup = warmup_fraction * total_steps

  def schedule(step):
    # The first update has step 0 and shall not be lost: hence step + 1.
    rise = jnp.minimum(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    rate = base_learning_rate * rise
    return jnp.asarray(
      rate * _last_part(step, total_steps, decay_fraction), jnp.float32
    )

  return schedule
