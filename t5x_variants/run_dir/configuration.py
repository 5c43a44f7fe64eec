"""The configuration of a run directory, and that of the present start.

`config.gin` is the operative configuration of the newest start that took a
step. An earlier one that differs is kept as `config-STEP.gin`, where STEP is
the step at which the newer one began.
"""

import pathlib

from etils import epath

from t5x_variants import errors, logs
from t5x_variants.run_dir import changes, layout, records


class Configuration:
  """Compares the configuration of a run with that of its restart."""

  def __init__(self, folder: pathlib.Path | epath.Path, now: str | None):
    """Reads config.gin, if there is one.

    Args:
      folder: the run directory.
      now: gin's operative configuration; None where gin configures nothing.

    Raises:
      errors.UserError: they are not of the same run.
    """
    self._folder, self._now = folder, now
    self._path = folder / 'config.gin'
    self._before = None
    if self._path.exists():
      self._before = self._path.read_bytes().decode(errors='replace')
    self._changed = []
    if self._before is not None and now is not None:
      self._changed = changes.check_same_run(str(folder), self._before, now)

  def lines(self, start: int, total_steps: int) -> list[str]:
    """What changed, for the log of a run that goes on from step `start`."""
    if not self._changed or not start or start >= total_steps:
      return []
    lines = [f'Changed since step {start}: {"; ".join(self._changed)}.']
    if any(text.startswith('TRAIN_STEPS ') for text in self._changed):
      lines.append(
        'The learning rates depend on TRAIN_STEPS, so that this run may '
        f'differ from one that was started with TRAIN_STEPS={total_steps}.'
      )
    return lines

  def write(self, start: int, writer) -> None:
    """Writes config.gin; one that differs is kept as config-STEP.gin.

    Args:
      start: the step that the run goes on from.
      writer: a `records.RunWriter`, for TensorBoard.
    """
    if self._now is None:
      return
    writer.write_text('config', self._now)
    if self._before == self._now:
      return
    if self._before is not None and start:
      layout.write_text(self._folder / f'config-{start}.gin', self._before)
    layout.write_text(self._path, self._now)

  def check_new(self, checkpoint_period: int) -> None:
    """Refuses to start at step 0 where the run has been further.

    Args:
      checkpoint_period: of this start, for a run without a config.gin.

    Raises:
      errors.UserError: the run directory has no checkpoint and records of
        steps that come after its first one, so that checkpoints are missing.
    """
    last = records.last_step(self._folder)
    if last is None:
      return
    saved = layout.resolved(
      layout.parsed(self._before or ''), 'checkpoints.CheckpointConfig.period'
    )
    period = int(saved) if saved and saved.isdigit() else checkpoint_period
    # A save waits for the one before it: if the first one fails, on a full disk
    # for example, the run ends at the second one.
    if last > 2 * period:
      raise errors.UserError(
        f'MODEL_DIR {self._folder} has records up to step {last} and no '
        f'checkpoint, although one was written every {period} steps. Put its '
        'folder checkpoints back, or give another MODEL_DIR; starting here at '
        'step 0 would destroy the records.'
      )
    logs.say(
      f'The run ended at step {last}, before its first checkpoint was '
      'written: it starts again at step 0.'
    )
