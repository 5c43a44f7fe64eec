"""Checkpoints: asynchronous, atomic, with the position in the data.

A step's folder holds `state` (parameters, optimizer state, running sums) and
`data` (where the input pipeline stands). Orbax writes a step under a temporary
name and renames it when it is whole, and deletes old ones only after that: a
disk that fills up or a process that dies leaves the last good step intact.
"""

import logging
import os
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from t5x_variants import errors

_log = logging.getLogger('t5x_variants')


class PositionHandler(ocp.CheckpointHandler):
  """Writes anything that has `save(directory)` and `restore(directory)`."""

  def save(self, directory, args: 'PositionSave') -> None:
    """Writes `args.item` into `directory`."""
    if args.item is not None:
      args.item.save(str(directory))

  def restore(self, directory, args: 'PositionRestore') -> None:
    """Puts `args.item` where it was when `directory` was written."""
    args.item.restore(str(directory))


@ocp.args.register_with_handler(PositionHandler, for_save=True)
class PositionSave(ocp.args.CheckpointArgs):
  """Arguments for saving a position."""

  def __init__(self, item):
    self.item = item


@ocp.args.register_with_handler(PositionHandler, for_restore=True)
class PositionRestore(ocp.args.CheckpointArgs):
  """Arguments for restoring a position."""

  def __init__(self, item):
    self.item = item


class _Kept:
  """Which checkpoints orbax keeps: the newest, some for good, and the best."""

  def __init__(self, max_to_keep: int | None, keep_period: int | None):
    self._newest, self._period = max_to_keep, keep_period
    self.best: int | None = None

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """For each checkpoint, oldest first, whether it stays; orbax asks."""
    del context
    first = 0
    if self._newest is not None:
      first = max(0, len(checkpoints) - self._newest)
    return [
      number >= first
      or found.step == self.best
      or (self._period is not None and found.step % self._period == 0)
      for number, found in enumerate(checkpoints)
    ]


class Checkpoints:
  """The checkpoints of one run directory."""

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    max_to_keep: int | None = 3,
    keep_period: int | None = None,
    with_position: bool = True,
  ):
    """Opens, and if need be makes, the folder.

    Args:
      directory: absolute path or gs:// URL.
      max_to_keep: the newest so many steps are kept; None keeps all.
      keep_period: steps divisible by it are kept for good.
      with_position: whether this process writes where it stands in the data;
        of several that read the same, one does.
    """
    self._directory = directory
    self._kept = _Kept(max_to_keep, keep_period)
    self._with_position = with_position
    try:
      self._manager = ocp.CheckpointManager(
        directory,
        # Named here so that a step's metadata can be read before the first
        # restore.
        item_handlers={
          'state': ocp.StandardCheckpointHandler(),
          'data': PositionHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._kept,
          # The caller decides when; orbax's own interval stays out of it.
          save_interval_steps=1,
          enable_async_checkpointing=True,
        ),
      )
    except OSError as error:
      raise _unwritable(directory, error) from error

  def save(self, step: int, state, position) -> None:
    """Starts to write a step; waits for the one before if it still runs.

    Raises:
      errors.UserError: this or the write before it failed.
    """
    if step in self._manager.all_steps():
      return
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          data=PositionSave(position if self._with_position else None),
        ),
        force=True,
      )
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise _unwritable(self._directory, error) from error

  def keep(self, step: int | None) -> None:
    """From the next save on this step stays, the one named before may go."""
    self._kept.best = step

  def restore_step(self, step: int, state):
    """The state of one step; `state` is as for `restore_latest`.

    Raises:
      errors.UserError: it is not there or cannot be read.
    """
    self.wait()
    try:
      return self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state))
      )['state']
    except Exception as error:
      # Which exception a damaged file ends in depends on the file.
      reason = ' '.join(str(error).split())[:200]
      raise errors.UserError(
        f'The checkpoint of step {step} in {self._directory} cannot be read: '
        f'{reason}'
      ) from error

  def wait(self) -> None:
    """Returns when all that was saved is on disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise _unwritable(self._directory, error) from error

  def close(self) -> None:
    """Waits and releases the threads."""
    self.wait()
    self._manager.close()

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def restore_latest(self, state, position):
    """Restores the newest step that is whole.

    A step that cannot be read is set aside as `unreadable-STEP`, said in the
    log, and the one before it is taken.

    Args:
      state: the tree expected, of `jax.ShapeDtypeStruct` with shardings.
      position: has `restore(directory)`; set to where the step was saved.

    Returns:
      The state; None when there is no checkpoint.

    Raises:
      errors.UserError: the checkpoint is of another model, its position of
        other data, or all are broken.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      self._check_same_model(step, state)
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            data=PositionRestore(position),
          ),
        )
        return restored['state']
      except Exception as error:
        # Which exception a damaged file ends in depends on the file.
        of_another_run = isinstance(error, errors.UserError)
        if of_another_run and not isinstance(error, errors.DamagedError):
          raise  # Whole: nothing to set aside.
        if jax.process_count() > 1:
          raise self._unreadable(step, error) from error
        self._set_aside(step, error)
    if steps:
      raise errors.UserError(
        f'No checkpoint in {self._directory} can be read (steps '
        f'{sorted(steps)}); they are kept beside it as unreadable-STEP. '
        'Start again with another MODEL_DIR.'
      )
    return None

  def _unreadable(self, step: int, error: Exception) -> errors.UserError:
    """Of several hosts one may read what another cannot: a person decides."""
    reason = ' '.join(str(error).split())[:200]
    return errors.UserError(
      f'Checkpoint of step {step} cannot be read ({type(error).__name__}: '
      f'{reason}). Move {self._directory}/{step} away and start the same '
      'command again: the run goes on from the checkpoint before it.'
    )

  def _set_aside(self, step: int, error: Exception) -> None:
    """Moves a broken step out of the way without deleting it."""
    folder = epath.Path(self._directory)
    reason = ' '.join(str(error).split())[:200]
    _log.warning(
      'Checkpoint of step %d cannot be read (%s: %s); it is kept as '
      'unreadable-%d, going on from the one before.',
      step,
      type(error).__name__,
      reason,
      step,
    )
    (folder / str(step)).rename(folder / f'unreadable-{step}')
    self._manager.reload()

  def _check_same_model(self, step: int, state) -> None:
    """Compares the parameters' names and shapes with those on disk."""
    try:
      saved = self._manager.item_metadata(step)['state'].tree
      found = _shapes(saved['params'])
    except Exception:
      return  # Damaged: restoring says so and falls back.
    if 'opt_state' not in saved:
      raise errors.UserError(
        f'{self._directory} holds imported weights and no run. Start a run '
        'from them with another MODEL_DIR and --gin.INITIAL_CHECKPOINT_PATH='
        f'"\'{os.path.dirname(self._directory)}\'".'
      )
    lines = differences(found, _shapes(state.params))
    if lines:
      raise errors.UserError(
        f'{self._directory} holds a checkpoint of another model; '
        + '\n'.join(lines)
        + '\nUse another MODEL_DIR, or the gin files this one was made with.'
      )


def differences(
  found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """What differs between a checkpoint's parameters and a model's, in lines.

  Args:
    found: shapes by name, of the checkpoint.
    expected: shapes by name, of the model.

  Returns:
    A count, then the first few of them; [] when they are the same.
  """
  names = sorted(
    name
    for name in found.keys() | expected.keys()
    if found.get(name) != expected.get(name)
  )
  if not names:
    return []
  lines = [f'{len(names)} parameter(s) differ:']
  lines += [
    f'  {name}: {_shape_text(found.get(name))} in the checkpoint, '
    f'{_shape_text(expected.get(name))} in this model'
    for name in names[:5]
  ]
  if len(names) > 5:
    lines.append(f'  and {len(names) - 5} more')
  return lines


def _unwritable(directory, error: Exception) -> errors.UserError:
  # A library's message names the file first and the cause last.
  reason = ' '.join(str(error).split())
  if len(reason) > 300:
    reason = f'{reason[:100]} ... {reason[-200:]}'
  return errors.UserError(
    f'Cannot write checkpoints to {directory}: {reason}. The last complete '
    'checkpoint is intact; free some space or make the folder writable, '
    'then start the same command again.'
  )


def _shapes(tree: Mapping) -> dict[str, tuple[int, ...]]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    '/'.join(str(getattr(k, 'key', k)) for k in path): tuple(leaf.shape)
    for path, leaf in flat
  }


def _shape_text(shape: tuple[int, ...] | None) -> str:
  return 'absent' if shape is None else str(list(shape))
