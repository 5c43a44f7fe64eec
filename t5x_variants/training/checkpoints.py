"""Checkpoints: asynchronous, atomic, with the position in the data.

The folder of a step holds `state` (parameters, optimizer state, running sums),
`data` (the iterator state of the input pipeline) and `checksums` (of the files
of both). Orbax writes a step under a temporary name, renames it when it is
whole, and deletes old steps only after that: a disk that fills up or a process
that dies leaves the last good step intact. The checksums are written before
the rename, so that a step that has its name can be proved whole or damaged.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as preservation

from t5x_variants import errors, paths
from t5x_variants.run_dir import checksums
from t5x_variants.weights import source

_log = logging.getLogger('t5x_variants')


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Which steps of a run are saved, and which are kept.

  Attributes:
    period: steps between checkpoints; one more at the end.
    max_to_keep: the newest so many are kept; None keeps all.
    keep_period: steps divisible by it are kept for good.
  """

  period: int = 1000
  max_to_keep: int | None = 3
  keep_period: int | None = None

  def __post_init__(self):
    errors.check_positive('CHECKPOINT_PERIOD', self.period)


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


class ChecksumsHandler(ocp.CheckpointHandler):
  """Writes the checksums of a step's other items once these are complete."""

  def save(self, directory, args: 'ChecksumsSave') -> None:
    """Does nothing yet: the arrays are still being written."""

  def restore(self, directory, args=None) -> None:
    """Does nothing: see `damage`."""

  def finalize(self, directory) -> None:
    """Reads what the items before this one have written.

    Orbax finalizes the items in the order in which the manager names them, on
    one process, before it gives the step its name.
    """
    if paths.is_remote(directory):
      return  # Cloud storage checks its objects itself.
    item = pathlib.Path(directory)
    # What stands beside the items is orbax's own, and may still change.
    checksums.write(item, item.parent, lambda name: not _is_own(item, name))


@ocp.args.register_with_handler(ChecksumsHandler, for_save=True)
class ChecksumsSave(ocp.args.CheckpointArgs):
  """Arguments for saving checksums: none."""


@ocp.args.register_with_handler(ChecksumsHandler, for_restore=True)
class ChecksumsRestore(ocp.args.CheckpointArgs):
  """Arguments for restoring checksums, which orbax demands of a handler."""


def _is_own(item: pathlib.Path, name: str) -> bool:
  first, _, inside = name.partition('/')
  return not inside or first == item.name


def damage(step_folder: str | os.PathLike) -> str:
  """What is wrong with the files of a step's folder; '' if nothing is known.

  Each process reads its part of the files and all get the same answer.

  Raises:
    OSError: a file that exists cannot be read, which proves no damage.
  """
  index, count = jax.process_index(), jax.process_count()
  found = checksums.damage_of_step(step_folder, index, count)
  if count > 1:
    everyone = multihost_utils.process_allgather(np.bool_(bool(found)))
    if np.any(everyone) and not found:
      others = np.flatnonzero(everyone).tolist()
      return f'host(s) {", ".join(map(str, others))} found damage in it'
  return found


class Checkpoints:
  """The checkpoints of one run directory."""

  def __init__(
    self,
    directory: str | os.PathLike,
    config: CheckpointConfig,
    *,
    with_position: bool = True,
  ):
    """Opens, and if need be makes, the folder.

    Args:
      directory: absolute path or gs:// URL.
      config: which steps are kept.
      with_position: whether this process writes where it stands in the data;
        of several that read the same, one does.
    """
    self._directory = directory
    self._preserved: list[preservation.PreservationPolicy] = [
      preservation.LatestN(config.max_to_keep)
    ]
    if config.keep_period is not None:
      self._preserved.append(preservation.EveryNSteps(config.keep_period))
    self._preserved.append(preservation.CustomSteps(()))
    self._with_position = with_position
    try:
      self._manager = ocp.CheckpointManager(
        directory,
        # Named here so that a step's metadata can be read before the first
        # restore.
        item_handlers={
          'state': ocp.StandardCheckpointHandler(),
          'data': PositionHandler(),
          # Last: its `finalize` reads what the others have written.
          checksums.ITEM: ChecksumsHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          preservation_policy=preservation.AnyPreservationPolicy(
            self._preserved
          ),
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
          checksums=ChecksumsSave(),
        ),
        force=True,
      )
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise _unwritable(self._directory, error) from error

  def keep(self, step: int | None) -> None:
    """From the next save on this step stays, the one named before may go."""
    steps = () if step is None else (step,)
    self._preserved[-1] = preservation.CustomSteps(steps)

  def restore_step(self, step: int, state):
    """The state of one step; `state` is as for `restore_latest`.

    Raises:
      errors.UserError: it is not there or cannot be read.
    """
    self.wait()
    try:
      if found := damage(epath.Path(self._directory) / str(step)):
        raise errors.UserError(
          f'The checkpoint of step {step} in {self._directory} is damaged: '
          f'{found}.'
        )
      return self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state))
      )['state']
    except errors.UserError:
      raise
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise self._unreadable(step, error) from error

  def wait(self) -> None:
    """Returns when all that was saved is on disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise _unwritable(self._directory, error) from error

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Closes; after another error, which is the one to tell, in silence."""
    hidden = (Exception,) if kind else ()
    with contextlib.suppress(*hidden):
      self.close()

  def close(self) -> None:
    """Waits and releases the threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """The steps saved, oldest first."""
    return sorted(self._manager.all_steps())

  def restore_latest(self, state, position):
    """Restores the newest step that is whole.

    A step whose files differ from their checksums is set aside as
    `unreadable-STEP`, which the log says, and the one before it is taken. A
    step that cannot be read for any other reason ends the run: the reason may
    pass (a mount, memory), and the step may be whole.

    Args:
      state: the tree expected, of `jax.ShapeDtypeStruct` with shardings.
      position: has `restore(directory)`; set to where the step was saved.

    Returns:
      The state; None when there never was a checkpoint.

    Raises:
      errors.UserError: the checkpoint is of another model or optimizer, its
        position is of other data, it cannot be read, or all are damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        found = damage(epath.Path(self._directory) / str(step))
      except OSError as error:
        raise self._unreadable(step, error) from error
      if not found:
        try:
          return self._restore(step, state, position)
        except errors.DamagedError as error:
          if jax.process_count() > 1:
            raise  # Only this host knows: its position is its own.
          found = errors.reason(error)
      self._set_aside(step, found)
    if set_aside := self._set_aside_before():
      raise errors.UserError(
        f'No checkpoint in {self._directory} can be used: all are damaged. '
        f'They are kept there as {", ".join(set_aside)}. Copy a whole one '
        'there from elsewhere under its step number, or start a new run with '
        'another MODEL_DIR.'
      )
    return None

  def _restore(self, step: int, state, position):
    """The state of a step that is not known to be damaged."""
    self._check_same_state(step, state)
    try:
      return self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(state),
          data=PositionRestore(position),
        ),
      )['state']
    except errors.UserError:
      raise  # The position is damaged, or of other data.
    except Exception as error:
      # Orbax, tensorstore and TensorFlow have no base class in common.
      raise self._unreadable(step, error) from error

  def _unreadable(self, step: int, error: Exception) -> errors.UserError:
    return errors.UserError(
      f'The checkpoint of step {step} in {self._directory} cannot be read '
      f'({type(error).__name__}: {errors.reason(error)}), and nothing proves '
      'that it is damaged, so it is left as it is. If the storage or the '
      'memory of this machine is at fault, mend that and start the same '
      f'command again; else move {self._directory}/{step} away, and the run '
      'goes on from the checkpoint before it.'
    )

  def _set_aside(self, step: int, found: str) -> None:
    """Moves a damaged step out of the way without deleting it."""
    folder = epath.Path(self._directory)
    target, number = folder / f'unreadable-{step}', 1
    while target.exists():
      number += 1
      target = folder / f'unreadable-{step}-{number}'
    _log.warning(
      'The checkpoint of step %d is damaged (%s); it is kept as %s, and the '
      'run goes on from the one before.',
      step,
      found,
      target.name,
    )
    if jax.process_count() > 1:
      # After all have chosen the name, and before any lists the steps.
      multihost_utils.sync_global_devices(f'set aside {step}')
    if jax.process_index() == 0:
      (folder / str(step)).rename(target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'was set aside {step}')
    self._manager.reload()

  def _set_aside_before(self) -> list[str]:
    folder = epath.Path(self._directory)
    return sorted(path.name for path in folder.glob('unreadable-*'))

  def _check_same_state(self, step: int, state) -> None:
    """Compares names and shapes of the whole state with those on disk."""
    try:
      saved = self._manager.item_metadata(step)['state'].tree
      found, expected = _shapes(saved), _shapes(state)
    except Exception as error:
      # Which exception a file that cannot be read ends in depends on the file.
      raise self._unreadable(step, error) from error
    if not any(not name.startswith(('params/', 'step')) for name in found):
      raise errors.UserError(
        f'{self._directory} holds imported weights and no run. Start a run '
        'from them with another MODEL_DIR and --gin.INITIAL_CHECKPOINT_PATH='
        f'"\'{os.path.dirname(self._directory)}\'".'
      )
    lines = source.differences(
      _within(found, 'params/'), _within(expected, 'params/'), 'model'
    )
    if lines:
      raise errors.UserError(
        f'{self._directory} holds a checkpoint of another model; '
        + '\n'.join(lines)
        + '\nUse another MODEL_DIR, or the gin files this one was made with.'
      )
    lines = source.differences(found, expected, 'run')
    if lines:
      raise errors.UserError(
        f'{self._directory} holds a checkpoint of the same model with another '
        'optimizer; '
        + '\n'.join(lines)
        + '\nSet back what chooses the optimizer (COEFFICIENT_OPTIMIZER, '
        'FROZEN), or start a new run from its weights with another MODEL_DIR '
        'and --gin.INITIAL_CHECKPOINT_PATH='
        f'"\'{os.path.dirname(self._directory)}\'".'
      )


def _unwritable(directory, error: Exception) -> errors.UserError:
  return errors.UserError(
    f'Cannot write checkpoints to {directory}: {errors.reason(error)}. The '
    'last complete checkpoint is intact; free some space or make the folder '
    'writable, then start the same command again.'
  )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  """Shapes by name, whether the containers have names or were read as dicts."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in flat
  }


def _within(shapes: Mapping, prefix: str) -> dict[str, tuple[int, ...]]:
  return {
    name.removeprefix(prefix): shape
    for name, shape in shapes.items()
    if name.startswith(prefix)
  }
