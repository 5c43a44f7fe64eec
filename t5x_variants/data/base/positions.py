"""What both readers, of seqio tasks and of prepared data, ask of a caller.

A shard is the part of each batch that one host reads; a position is a place in
the data, and means something only to a reader built in the same way.
"""

import os
from collections.abc import Collection, Mapping

from t5x_variants import errors

_FEATURES = ('inputs', 'targets')


def feature_lengths(lengths, also: Collection[str] = ()) -> dict[str, int]:
  """TASK_FEATURE_LENGTHS, checked.

  Args:
    lengths: tokens of 'inputs' and of 'targets'.
    also: other features that may be named, those that the task has.

  Returns:
    The same as a dict.

  Raises:
    errors.UserError: a feature is missing or unknown, or a length is no whole
      number from 1 up.
  """
  if not isinstance(lengths, Mapping) or not {*_FEATURES} <= {*lengths}:
    raise errors.UserError(
      f'TASK_FEATURE_LENGTHS is {lengths!r}; it must give the tokens of'
      " 'inputs' and of 'targets', such as {'inputs': 512, 'targets': 114}."
    )
  known = {*_FEATURES, *also}
  if unknown := [name for name in lengths if name not in known]:
    raise errors.UserError(
      f'TASK_FEATURE_LENGTHS is {dict(lengths)!r}, but there is no feature'
      f' {unknown[0]!r}: take {sorted(known)}.'
    )
  for name, length in lengths.items():
    errors.check_positive(f'TASK_FEATURE_LENGTHS of {name!r}', length)
  return dict(lengths)


def rows_of_shard(batch_size: int, shard_index: int, num_shards: int) -> int:
  """Rows of a batch that one of `num_shards` hosts reads.

  Raises:
    errors.UserError: the hosts' parts are not equal, or there is no such host.
  """
  errors.check_positive('BATCH_SIZE', batch_size)
  if num_shards < 1 or batch_size % num_shards:
    raise errors.UserError(
      f'BATCH_SIZE is {batch_size}; it must be a multiple of the {num_shards}'
      ' hosts that read, since each takes an equal part.'
    )
  if not 0 <= shard_index < num_shards:
    raise errors.UserError(
      f'The shard is {shard_index}; it must be from 0 to {num_shards - 1}.'
    )
  return batch_size // num_shards


def check_built_alike(
  directory: str | os.PathLike, before: Mapping, now: Mapping
) -> None:
  """Refuses a position that a reader built in another way has saved.

  Args:
    directory: where the position lies.
    before: by name, what the reader that saved it was built with.
    now: the same of the reader that is to go on from it.

  Raises:
    errors.UserError: they differ.
  """
  for name in dict.fromkeys([*now, *before]):
    if before.get(name) != now.get(name):
      raise errors.UserError(
        f'The data position in {os.fspath(directory)} was saved with'
        f' {name}={before.get(name)!r} and this run has {now.get(name)!r}: set'
        ' it back, or start anew in another MODEL_DIR.'
      )
