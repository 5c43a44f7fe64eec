"""Which evaluation of a run was its best, and when to stop looking.

The best is the highest value of one number of the 'eval' records (of a loss,
the lowest). Among equals, which are common in an accuracy of 100 examples, the
lowest loss decides, then the first. What is not a number comes last. Step 0
does not count: nothing was trained yet. All follows from the records alone, so
that a run that goes on decides as one that was never stopped.
"""

import math
from collections.abc import Collection, Iterable, Mapping

from t5x_variants import errors

# Of these less is better.
_LOSSES = ('loss', 'z_loss')


class Selection:
  """The best of the evaluations so far.

  Attributes:
    metric: the number's name in a record; None: none is the best.
    best_step: the step of the best; None before the first.
    best_value: its value.
    since: evaluations since the best.
  """

  def __init__(self, metric: str | None = None, patience: int | None = None):
    """Starts without any evaluation.

    Args:
      metric: BEST_METRIC, a name in a record.
      patience: EARLY_STOPPING_PATIENCE, so many evaluations without a better
        one end the run; None: none do.

    Raises:
      errors.UserError: a patience without a metric, or below 1.
    """
    if patience is not None:
      errors.check_positive('EARLY_STOPPING_PATIENCE', patience)
      if metric is None:
        raise errors.UserError(
          f'EARLY_STOPPING_PATIENCE is {patience} and BEST_METRIC is None: '
          "say what is to improve, such as BEST_METRIC = 'average'."
        )
    self.metric, self._patience = metric, patience
    self.best_step: int | None = None
    self.best_value: float | None = None
    self.since = 0
    self._best: tuple[float, float] | None = None

  def check(self, names: Collection[str], without: str) -> None:
    """Refuses a metric that no record will have.

    Args:
      names: the numbers of an 'eval' record.
      without: why there are no metrics of tasks among them; '' if there are.

    Raises:
      errors.UserError: it is none of these.
    """
    if self.metric in names:
      return
    why = f' Of tasks there is none: {without}.' if without else ''
    raise errors.UserError(
      f'BEST_METRIC is {self.metric!r}; an evaluation gives '
      f'{", ".join(names) or "nothing, for there is no held-out split"}.{why}'
    )

  def add(self, step: int, values: Mapping[str, float]) -> bool:
    """Takes an evaluation in; whether it is the best so far."""
    if self.metric is None or step == 0 or self.metric not in values:
      return False
    value, loss = values[self.metric], values.get('loss', 0.0)
    found = _last_if_nan(-value if self.metric in _LOSSES else value), -loss
    if self._best is None or found > self._best:
      self._best = found
      self.best_step, self.best_value, self.since = step, value, 0
      return True
    self.since += 1
    return False

  def restore(self, records: Iterable[Mapping]) -> None:
    """Takes in the 'eval' records that a run has written, in order."""
    for record in records:
      self.add(record['step'], record)

  @property
  def exhausted(self) -> bool:
    """Whether the last `patience` evaluations brought nothing better."""
    return self._patience is not None and self.since >= self._patience


def _last_if_nan(value: float) -> float:
  return -math.inf if math.isnan(value) else value
