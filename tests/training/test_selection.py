"""The best checkpoint, early stopping, the test: in a run, and restarted."""

import dataclasses
import math
import os
import signal

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import Killed, Numbered, losses, periods, run

from t5x_variants import errors
from t5x_variants.run_dir import records
from t5x_variants.training import evaluator, selection, task_metrics

PERIODS = periods(log=1, eval=2, eval_steps=1, checkpoint=5)


@given(st.lists(st.integers(0, 5)), st.integers(1, 4))
def test_it_is_the_first_of_the_highest(values, patience):
  found = selection.Selection('score', patience)
  seen = []
  for step, value in enumerate(values, 1):
    assert found.add(step, {'score': value}) == (value > max(seen, default=-1))
    seen.append(value)
    assert found.best_value == max(seen)
    assert found.best_step == seen.index(max(seen)) + 1
    # Written out: none of the last `patience` is above all before them.
    before, last = seen[:-patience], seen[-patience:]
    assert found.exhausted == bool(before and max(before) >= max(last))
  again = selection.Selection('score', patience)
  again.restore({'step': n, 'score': v} for n, v in enumerate(values, 1))
  assert vars(again) == vars(found)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_among_equals_the_lowest_loss_decides(values):
  found = selection.Selection('score')
  found.restore(
    {'step': n, 'score': v, 'loss': x} for n, (v, x) in enumerate(values, 1)
  )
  best = sorted(values, key=lambda each: (-each[0], each[1]))[0]
  assert found.best_step == values.index(best) + 1


def test_a_loss_is_best_where_it_is_lowest_and_nan_never_is():
  for metric, best in (('loss', 3), ('score', 2)):
    found = selection.Selection(metric)
    for step, value in enumerate([math.nan, 3.0, 1.0, math.nan], 1):
      found.add(step, {metric: value, 'loss': 1.0} | {metric: value})
    assert found.best_step == best
    assert found.since == 4 - best
  found = selection.Selection('loss')
  found.restore({'step': s, 'loss': v} for s, v in enumerate([0.1, 3, 1, 2]))
  assert found.best_step == 2, 'step 0 does not count'


def test_what_cannot_be_selected_is_refused():
  with pytest.raises(errors.UserError, match='BEST_METRIC is None'):
    selection.Selection(None, 3)
  with pytest.raises(errors.UserError, match='PATIENCE is 0'):
    selection.Selection('loss', 0)
  with pytest.raises(errors.UserError, match=r"'f1'; .* loss, task/em"):
    selection.Selection('f1').check(['loss', 'task/em'], '')
  with pytest.raises(errors.UserError, match='Of tasks there is none: so'):
    selection.Selection('f1').check(['loss'], 'so')


def test_several_processes_do_not_test(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(errors.UserError, match="'test' and there are 2"):
    evaluator.open_test(
      evaluator.EvaluationConfig(Splits(), test_split='test'), None, None, 1
    )


@dataclasses.dataclass
class Splits(Numbered):
  """Stands in for a DatasetConfig with several splits."""

  split: str = 'validation'


# At steps 0, 2, 4 and so on: of those that count the best is at step 6.
VALUES = (50.0, 10.0, 30.0, 40.0, 20.0, 35.0, 5.0)


@pytest.fixture
def jumping(monkeypatch):
  """A metric that jumps up and down from step to step, and its calls.

  The numbers are ours and not of the parameters, whose last digits another
  version of JAX may change; the same parameters get the same number.
  """
  calls, values = [], {}

  class Evaluator:
    names = ('task/jumps',)

    def __init__(self, model, dataset, settings, mesh):
      self.split = dataset.split

    def __call__(self, params):
      calls.append(self.split)
      norm = sum(float(abs(x).sum()) for x in jax.tree.leaves(params))
      if norm not in values:
        values[norm] = VALUES[len(values)]
      return {'task/jumps': values[norm]}

  monkeypatch.setattr(task_metrics, 'Evaluator', Evaluator)
  return calls


def go(folder, steps=24, dataset=None, **options):
  defaults = {
    'periods': PERIODS,
    'eval_dataset': Splits(last=16),
    'task_decoding': task_metrics.Settings(),
    'best_metric': 'task/jumps',
    'early_stopping_patience': 3,
    'test_split': 'test',
    'max_to_keep': 1,
  }
  run(folder, steps, dataset, **defaults | options)
  return {r['step']: r['task/jumps'] for r in records.read(folder, 'eval')}


def kept(folder):
  return sorted(
    int(path.name)
    for path in (folder / 'checkpoints').iterdir()
    if path.name.isdigit()
  )


def test_best_checkpoint_test_and_restarts(jumping, tmp_path):
  found = go(tmp_path / 'whole')
  assert tuple(found.values()) == VALUES
  best, last = 6, 12
  assert list(found)[-1] == last, 'three evaluations after the best'
  assert kept(tmp_path / 'whole') == [best, last]
  (test,) = records.read(tmp_path / 'whole', 'test')
  assert test['step'] == best
  # The same parameters.
  assert test['task/jumps'] == found[best]
  assert jumping.count('test') == 1
  go(tmp_path / 'whole')
  assert jumping.count('test') == 1, 'it stands there already'

  def disturb(number):
    if number == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    if number == 9:
      raise Killed

  go(tmp_path / 'broken', dataset=Numbered(before_batch=disturb))
  with pytest.raises(Killed):
    go(tmp_path / 'broken', dataset=Numbered(before_batch=disturb))
  assert jumping.count('test') == 1, 'not before the end'
  assert go(tmp_path / 'broken') == found
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')
  assert kept(tmp_path / 'broken') == [best, last]
  assert records.read(tmp_path / 'broken', 'test')[0]['step'] == best
