"""Differences that are paired by seed, and Student's t interval of their mean.

The interval covers the expected difference in 95 % of repetitions where the
differences are about normal. It is not corrected for how many differences a
table has, and it knows only the variation that the seeds have.
"""

from collections.abc import Mapping, Sequence

import scipy.stats

CONFIDENCE = 0.95


def differences(
  values: Mapping[str, float], baseline: Mapping[str, float]
) -> list[float]:
  """Value minus baseline, for each seed that is in both."""
  return [values[seed] - baseline[seed] for seed in values if seed in baseline]


def half_width(values: Sequence[float]) -> float:
  """Half of the interval of the mean: t(0.975, n - 1) s / sqrt(n).

  Args:
    values: at least two numbers.
  """
  quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
  return float(quantile * scipy.stats.sem(values))
