"""A task's own metrics of a model: its inputs decoded, its outputs judged.

All tasks of a mixture are judged one by one. The numbers stand in a record
under these names:

  task/METRIC   of the one task of a run, whatever it is called, so that runs
                on other draws of the same task can be compared
  NAME/METRIC   of the task NAME of a mixture
  average       the mean over tasks of the mean of a task's metrics, as T5
                averages GLUE

Inputs of a task are decoded at one length, the smallest power of two that
holds them all, so that there is one program to compile for each such length.
Every process decodes its part of a batch and judges all of it.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_variants import decoding, errors, network, partitioning

AVERAGE = 'average'
_ONE_TASK = 'task'
_SHORTEST = 32


@dataclasses.dataclass(frozen=True)
class Settings:
  """How tasks are decoded.

  Attributes:
    decoder: `decoding.greedy`, `beam_search` or `sample`.
    batch_size: inputs at a time.
    decode_length: tokens of an output at most, EOS included; None: as many as
      TASK_FEATURE_LENGTHS gives targets.
    count: the first so many examples of each task; None: all; 0: none, and so
      no metric.
  """

  decoder: Callable[..., decoding.Decodes] = decoding.greedy
  batch_size: int = 32
  decode_length: int | None = None
  count: int | None = None


class Evaluator:
  """Decodes the same examples whenever it is called."""

  def __init__(
    self, model: network.Transformer, dataset, settings: Settings, mesh
  ):
    """Reads the examples.

    Args:
      model: the network.
      dataset: a `data.config.DatasetConfig`.
      settings: how they are decoded.
      mesh: devices, axes `data` and `model`.

    Raises:
      errors.UserError: a setting out of range, or see `examples.open_split`.
    """
    self.tasks = []
    if settings.count != 0:
      self.tasks = dataset.examples(settings.count)
    self._one = len(self.tasks) == 1
    self._dataset, self._settings, self._mesh = dataset, settings, mesh
    if not self.tasks:
      return
    length = settings.decode_length or dataset.task_feature_lengths['targets']
    errors.check_positive('DECODE_LENGTH', length)
    partitioning.check_batch(settings.batch_size, mesh)
    self._decode = jax.jit(
      functools.partial(
        settings.decoder,
        model,
        length=length,
        eos_id=self.tasks[0].vocabulary.eos_id,
      ),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  @property
  def judged(self) -> list:
    """Those of `tasks` that have metrics."""
    return [task for task in self.tasks if task.has_metrics]

  @property
  def names(self) -> list[str]:
    """The names of all numbers that `metrics` gives."""
    found = [
      f'{self._label(task)}/{name}'
      for task in self.judged
      for name in task.metric_names
    ]
    return [*found, AVERAGE] if found else []

  def __call__(self, params: Mapping) -> dict[str, float]:
    """The metrics of a model's predictions; {} where no task has one."""
    return self.metrics([self.predict(params, task) for task in self.judged])

  def metrics(self, predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """The metrics of texts, a list for each of `judged`."""
    found, scores = {}, []
    for task, texts in zip(self.judged, predictions, strict=True):
      values = task.metrics(texts)
      label = self._label(task)
      found |= {f'{label}/{name}': value for name, value in values.items()}
      scores.append(statistics.fmean(values.values()))
    return found | {AVERAGE: statistics.fmean(scores)} if scores else {}

  def _label(self, task) -> str:
    return _ONE_TASK if self._one else task.name

  def predict(self, params: Mapping, task) -> list[str]:
    """A text for each example of one of `tasks`."""
    size = self._settings.batch_size
    width = self._width(task)
    where = NamedSharding(self._mesh, partitioning.BATCH_SPEC)
    found = []
    for start in range(0, len(task), size):
      rows = np.zeros((size, width), np.int32)
      part = task.input_ids[start : start + size]
      for row, ids in zip(rows, part, strict=False):
        row[: len(ids)] = ids
      # Every process has all rows and gives its devices theirs.
      batch = jax.make_array_from_callback(
        rows.shape, where, lambda index, rows=rows: rows[index]
      )
      tokens, _ = self._decode(params, batch, jax.random.key(start))
      tokens = np.asarray(jax.device_get(tokens))[: len(part), 0]
      found += [task.text(row) for row in tokens]
    return found

  def _width(self, task) -> int:
    longest = max(map(len, task.input_ids))
    rounded = max(_SHORTEST, 1 << (longest - 1).bit_length())
    return max(
      longest, min(rounded, self._dataset.task_feature_lengths['inputs'])
    )

  def missing(self) -> str:
    """Why there is no metric, for a sentence."""
    if self._settings.count == 0:
      return 'METRIC_EXAMPLES is 0, so that nothing is decoded'
    if not self.tasks:
      return (
        'prepared data (gin/data/prepared.gin) has no metrics; read the task '
        'itself'
      )
    return (
      f'{", ".join(task.name for task in self.tasks)} has no metric of '
      'predictions: give the task metric_fns'
    )


def shown(values: Mapping[str, float]) -> str:
  """Metrics in a line: 'task/accuracy 71.00, average 71.00'."""
  return ', '.join(f'{name} {value:.2f}' for name, value in values.items())
