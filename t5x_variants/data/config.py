"""What to read, as gin names it; reading itself is imported when it begins."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from t5x_variants import errors

# With fewer, the standard error of an accuracy of 50 % is above one point, and
# that of a loss whose tokens spread by 2 nats above 0.04 nats.
FEW_TARGET_TOKENS = 2500


def few_target_tokens(target_tokens: float) -> str:
  """A sentence for a held-out split too small to compare by, or ''.

  Args:
    target_tokens: over which its loss and accuracy are means.
  """
  if target_tokens >= FEW_TARGET_TOKENS:
    return ''
  error = 50 / math.sqrt(max(target_tokens, 1))
  return (
    f'The held-out loss and accuracy are means over {target_tokens:,.0f}'
    f' target tokens, so that the standard error of the accuracy may be'
    f' {error:.1f} percentage points: evaluate on {FEW_TARGET_TOKENS:,} or more'
    ' (raise EVAL_STEPS or VALIDATION_FRACTION, or name files in'
    ' VALIDATION_FILES).'
  )


class Batches(Protocol):
  """An endless or finite iterator of batches that knows where it stands."""

  @property
  def vocab_size(self) -> int:
    """Ids of the vocabulary, sentinels included."""

  def __iter__(self) -> 'Batches':
    """Itself."""

  def __next__(self) -> Mapping[str, np.ndarray]:
    """t5x's features, int32, `[rows of this shard, length]`."""

  def save(self, directory: str | os.PathLike) -> None:
    """Writes the position."""

  def restore(self, directory: str | os.PathLike) -> None:
    """Goes to a position written by `save`; the next batch is the same."""

  def padding(self) -> Mapping[str, np.ndarray]:
    """A batch of padding alone, in place of one that this shard lacks."""


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """One split of a task, and how it is batched; the fields are t5x's.

  Attributes:
    mixture_or_task_name: a name registered with seqio; of prepared data the
      name that it must have, or None.
    task_feature_lengths: tokens of `inputs` and `targets` in one row; None:
      those that the data was prepared for.
    split: 'train' or 'validation'.
    batch_size: rows over all processes.
    shuffle: whether the order is drawn from the seed.
    seed: fixes order and noise.
    pack: whether several examples share a row.
    num_epochs: passes over the split; None never ends.
    prepared: folder of prepared data, which is then read without TensorFlow;
      None: the seqio task itself is.
  """

  mixture_or_task_name: str | None
  task_feature_lengths: Mapping[str, int] | None
  split: str
  batch_size: int
  shuffle: bool = True
  seed: int = 0
  pack: bool = True
  num_epochs: int | None = None
  prepared: str | None = None

  def __post_init__(self):
    """Refuses what a reader would take for something else, or ignore."""
    errors.check_positive('BATCH_SIZE', self.batch_size)
    if self.num_epochs is not None:
      errors.check_positive('num_epochs', self.num_epochs)
    for name in ('shuffle', 'pack'):
      value = getattr(self, name)
      if not isinstance(value, bool):
        raise errors.UserError(
          f'{name} is {value!r}; it must be True or False, without quotes.'
        )
    if not isinstance(self.seed, int):
      raise errors.UserError(
        f'seed is {self.seed!r}; it must be a whole number.'
      )

  def open(self, shard_index: int = 0, num_shards: int = 1) -> Batches:
    """Opens one of `num_shards` disjoint shards of the split."""
    options: dict[str, Any] = {
      'task_feature_lengths': self.task_feature_lengths,
      'split': self.split,
      'batch_size': self.batch_size,
      'shuffle': self.shuffle,
      'seed': self.seed,
      'pack': self.pack,
      'num_epochs': self.num_epochs,
      'shard_index': shard_index,
      'num_shards': num_shards,
    }
    if self.prepared is not None:
      from t5x_variants.data.prepared import reader as prepared

      return prepared.Batches(
        self.prepared, self.mixture_or_task_name, **options
      )
    # Imports TensorFlow: only where data is read.
    from t5x_variants.data import pipeline

    return pipeline.Batches(self._task_name(), **options)

  def _task_name(self) -> str:
    if self.mixture_or_task_name is None:
      raise errors.UserError(
        'MIXTURE_OR_TASK_NAME is None; it must name a task, such as'
        " 'embedded_span_corruption', where there is no prepared data."
      )
    return self.mixture_or_task_name

  def examples(self, count: int | None = None) -> list:
    """The split as `examples.Examples`, one for each task, to decode.

    Args:
      count: the first so many of each task; None: all.

    Returns:
      Those that have a text for each example; [] of prepared data, which
      keeps tokens alone.
    """
    if self.prepared is not None:
      return []
    # Imports TensorFlow: only where data is read.
    from t5x_variants.data.tasks import examples

    return examples.open_split(
      self._task_name(),
      self.task_feature_lengths,
      self.split,
      self.seed,
      count,
    )


def check_vocabulary(batches: Batches, vocab_size: int) -> None:
  """Refuses batches with more ids than a model of `vocab_size` has."""
  if batches.vocab_size > vocab_size:
    raise errors.UserError(
      f'The vocabulary has {batches.vocab_size} ids, sentinels included, '
      f'but the model has VOCAB_SIZE {vocab_size}: ids above '
      'it would be read as nothing. Use a model file with at least '
      f'{batches.vocab_size}, or set --gin.VOCAB_SIZE.'
    )
