"""A task's own metrics of a model: its inputs decoded, its outputs judged.

All tasks of a mixture are judged one by one. The numbers stand in a record
under these names:

  task/METRIC   of the one task of a run, whatever it is called, so that runs
                on other draws of the same task can be compared
  NAME/METRIC   of the task NAME of a mixture
  average       the mean over tasks of the mean of a task's metrics, as T5
                averages GLUE: MNLI's two development sets are one task

Inputs of a task are decoded at one length, the smallest power of two that
holds them all, so that there is one program to compile for each such length.
Every process decodes its part of a batch and judges all of it.
"""

import collections
import dataclasses
import functools
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_variants import decoding, errors, network, partitioning

AVERAGE = 'average'
_ONE_TASK = 'task'
_SHORTEST = 32
_SECTION = re.compile('_(mis)?matched$')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How tasks are decoded.

  Attributes:
    decoder: `decoding.greedy`, `beam_search` or `sample`.
    batch_size: inputs at a time, up to the next multiple of the data axis.
    decode_length: tokens of an output at most, EOS included; None: as many as
      TASK_FEATURE_LENGTHS gives targets.
    count: the first so many examples of each task; None: all; 0: none, and so
      no metric.
  """

  decoder: Callable[..., decoding.Decodes] = decoding.greedy
  batch_size: int = 32
  decode_length: int | None = None
  count: int | None = None


class Judge:
  """The examples of a split, and the metrics of predictions for them.

  Attributes:
    tasks: a `data.examples.Examples` for each task.
  """

  def __init__(self, dataset, settings: Settings):
    """Reads the examples of `dataset`, a `data.config.DatasetConfig`."""
    self.tasks = []
    if settings.count != 0:
      self.tasks = dataset.examples(settings.count)
    self._settings = settings

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

  def metrics(self, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The metrics of predictions, by task; {} where no task has one."""
    found, scores = {}, collections.defaultdict(list)
    for task in self.judged:
      values = task.metrics(texts[task.name])
      label = self._label(task)
      found |= {f'{label}/{name}': value for name, value in values.items()}
      scores[_SECTION.sub('', task.name)].append(
        statistics.fmean(values.values())
      )
    means = list(map(statistics.fmean, scores.values()))
    return found | {AVERAGE: statistics.fmean(means)} if means else {}

  def _label(self, task) -> str:
    return _ONE_TASK if len(self.tasks) == 1 else task.name

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


class Evaluator(Judge):
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
    super().__init__(dataset, settings)
    self._mesh = mesh
    if not self.tasks:
      return
    lengths = dataset.task_feature_lengths
    self._longest = lengths['inputs']
    length = settings.decode_length
    length = lengths['targets'] if length is None else length
    errors.check_positive('DECODE_LENGTH', length)
    unit = mesh.shape['data']
    errors.check_positive('DECODE_BATCH_SIZE', settings.batch_size)
    self._rows = -(-settings.batch_size // unit) * unit
    self._decode = jax.jit(
      functools.partial(
        settings.decoder,
        model,
        length=length,
        eos_id=self.tasks[0].vocabulary.eos_id,
      ),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def __call__(self, params: Mapping) -> dict[str, float]:
    """The metrics of a model's predictions; {} where no task has one."""
    return self.metrics(self.predict(params, self.judged))

  def predict(self, params: Mapping, tasks: Iterable) -> dict[str, list[str]]:
    """A text for each example, by task."""
    return {task.name: self._predict(params, task) for task in tasks}

  def _predict(self, params: Mapping, task) -> list[str]:
    width = self._width(task)
    where = NamedSharding(self._mesh, partitioning.BATCH_SPEC)
    found = []
    for start in range(0, len(task), self._rows):
      rows = np.zeros((self._rows, width), np.int32)
      part = task.input_ids[start : start + self._rows]
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
    return max(longest, min(rounded, self._longest))


def shown(values: Mapping[str, float]) -> str:
  """Metrics in a line: 'task/accuracy 71.00, average 71.00'."""
  return ', '.join(f'{name} {value:.2f}' for name, value in values.items())
