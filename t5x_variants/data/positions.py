"""What both readers, of seqio tasks and of prepared data, ask of a caller.

A share is the part of each batch that one host reads; a position is a place in
the data, and means something only to a reader built in the same way.
"""

import os
from collections.abc import Mapping

from t5x_variants.errors import UserError


def rows_of_share(batch_size: int, shard_index: int, num_shards: int) -> int:
  """Rows of a batch that one of `num_shards` hosts reads.

  Raises:
    UserError: the hosts' parts are not equal, or there is no such host.
  """
  if batch_size < 1 or num_shards < 1 or batch_size % num_shards:
    raise UserError(
      f'batch_size={batch_size} must be a positive multiple of'
      f' num_shards={num_shards}: every host takes an equal part'
    )
  if not 0 <= shard_index < num_shards:
    raise UserError(
      f'shard_index={shard_index}: must be from 0 to {num_shards - 1}'
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
    UserError: they differ.
  """
  for name, value in now.items():
    if before.get(name) != value:
      raise UserError(
        f'the data position in {os.fspath(directory)} was saved with'
        f' {name}={before.get(name)!r} and this run has {value!r}: set it'
        ' back, or start anew in another MODEL_DIR'
      )
