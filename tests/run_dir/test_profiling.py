"""PROFILE_STEPS: the trace is there, of the steps asked for."""

import jax
import pytest
from small_run import run

from t5x_variants import errors
from t5x_variants.run_dir import profiling, records


@pytest.fixture
def calls(monkeypatch):
  """What the profiler was asked, in order, instead of a trace."""
  found = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda _: found.append('on'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: found.append('off'))
  return found


def steps_through(folder, steps, first, last):
  with profiling.StepTrace(folder, steps) as trace:
    for step in range(first, last + 1):
      trace.before(step, None)
      yield step
      trace.after(step, None)


@pytest.mark.parametrize(
  'steps, first, traced',
  [
    ((3, 5), 1, [3, 4, 5]),
    ((1, 1), 1, [1]),
    ((3, 5), 3, [3, 4, 5]),
    ((3, 5), 4, []),  # Went on from step 3: too late.
    ((6, 9), 1, [6]),  # Ended at step 6: what there is.
    (None, 1, []),
  ],
)
def test_the_steps_asked_for_are_traced(tmp_path, calls, steps, first, traced):
  found = [
    step
    for step in steps_through(tmp_path, steps, first, 6)
    if calls and calls[-1] == 'on'
  ]
  assert found == traced
  assert calls == ['on', 'off'] * bool(traced)


def test_an_error_between_them_ends_the_trace(tmp_path, calls):
  with (
    pytest.raises(KeyboardInterrupt),
    profiling.StepTrace(tmp_path, (2, 4)) as trace,
  ):
    trace.before(2, None)
    raise KeyboardInterrupt
  assert calls == ['on', 'off']


def test_a_trace_that_cannot_be_written_ends_no_run(
  tmp_path, calls, monkeypatch, capsys
):
  def broken():
    raise RuntimeError('no session')

  monkeypatch.setattr(jax.profiler, 'stop_trace', broken)
  assert list(steps_through(tmp_path, (2, 3), 1, 4)) == [1, 2, 3, 4]
  err = capsys.readouterr().err
  assert err == 'The trace could not be written: no session.\n'


def test_a_run_leaves_a_trace_where_tensorboard_looks(tmp_path, capsys):
  folder = tmp_path / 'run'
  run(folder, 4, profile_steps=(2, 3), eval_dataset=None)
  traces = list(folder.glob('plugins/profile/*/*.xplane.pb'))
  assert len(traces) == 1
  # Each step names itself in it; xprof sums up by these.
  data = traces[0].read_bytes()
  assert b'step_num' in data and b'train' in data
  assert 'Traced steps 2 to 3 into' in capsys.readouterr().err
  record = records.read(folder, 'train')[-1]
  assert 0 < record['goodput'] < 1
  assert 'mfu' not in record  # A CPU has none.


@pytest.mark.parametrize(
  'steps, words',
  [
    ((0, 5), 'at least 1'),
    ((5, 4), 'neither before it nor after TRAIN_STEPS, 12'),
    ((10, 13), 'neither before it nor after TRAIN_STEPS, 12'),
    ((True, 2), 'first and the last step'),
    ((1, 2, 3), 'first and the last step'),
    (20, 'first and the last step'),
  ],
)
def test_other_steps_are_refused_before_anything_is_written(
  tmp_path, steps, words
):
  with pytest.raises(errors.UserError, match=words) as error:
    run(tmp_path / 'run', 12, profile_steps=steps)
  assert str(error.value).startswith('PROFILE_STEPS is ')
  assert not (tmp_path / 'run').exists()
