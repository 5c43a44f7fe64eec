"""A trace of some steps for xprof: what each device did, and when.

The trace lies in the run directory, where TensorBoard looks for it:
`pip install xprof tensorboard`, then `tensorboard --logdir MODEL_DIR`, tab
'Profile'. Host 0 writes that of its own devices; the others' do the same work.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import jax
from etils import epath

from t5x_variants import errors, logs


def check_steps(steps: Sequence[int] | None, total_steps: int) -> None:
  """Refuses steps that a run of `total_steps` cannot trace.

  Raises:
    errors.UserError: no pair of whole numbers, or not in order, or not among
      the run's steps.
  """
  if steps is None:
    return
  pair = isinstance(steps, (tuple, list)) and len(steps) == 2
  if not pair or any(type(step) is not int for step in steps):
    raise errors.UserError(
      f'PROFILE_STEPS is {steps!r}; it must be the first and the last step to '
      'trace, for example (20, 25), or None.'
    )
  if not 1 <= steps[0] <= steps[1] <= total_steps:
    raise errors.UserError(
      f'PROFILE_STEPS is {tuple(steps)}; the first step to trace must be at '
      f'least 1, and the last neither before it nor after TRAIN_STEPS, '
      f'{total_steps}.'
    )


class StepTrace:
  """Traces the steps from a first to a last one; a context around the loop.

  A run that is already past the first of them traces nothing; one that ends
  between them keeps what it has.
  """

  def __init__(
    self, folder: str | os.PathLike, steps: Sequence[int] | None = None
  ):
    """Takes the run directory, and the first and last step; None for none."""
    self._folder = folder
    self._first: int | None = None
    self._last: int | None = None
    if steps:
      self._first, self._last = steps
    self._local: str | None = None

  def __enter__(self) -> 'StepTrace':
    return self

  def __exit__(self, *unused) -> None:
    self._end()

  def before(self, step: int, in_flight) -> None:
    """Starts at the first step, when the one before has left the device."""
    if step != self._first or jax.process_index() != 0:
      return
    jax.block_until_ready(in_flight)
    local = self._local = tempfile.mkdtemp(prefix='t5x_variants-trace-')
    jax.profiler.start_trace(local)

  def after(self, step: int, in_flight) -> None:
    """Ends with the last step, when it has left the device."""
    if step == self._last and self._local:
      jax.block_until_ready(in_flight)
      self._end()

  def _end(self) -> None:
    """Writes what was traced into the run directory."""
    if not self._local:
      return
    local, self._local = pathlib.Path(self._local), None
    try:
      jax.profiler.stop_trace()
      # The profiler writes to local disks only.
      for path in filter(pathlib.Path.is_file, local.rglob('*')):
        target = epath.Path(self._folder) / path.relative_to(local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    except Exception as error:
      # A trace is no reason to end a run that trains; and the profiler and
      # cloud storage have errors of their own.
      logs.say(f'The trace could not be written: {error}.')
    else:
      logs.say(
        f'Traced steps {self._first} to {self._last} into {self._folder}: '
        f'pip install xprof tensorboard; tensorboard --logdir {self._folder}'
      )
    finally:
      shutil.rmtree(local, ignore_errors=True)
