"""A task's own metrics of a model: its outputs judged, its targets scored.

A metric of predictions compares what the model answers to the inputs with the
targets; a metric of scores takes the log-likelihood that the model gives to
each target. seqio tells them apart by their arguments, (targets, predictions)
and (targets, scores), and a task may have both.

All tasks of a mixture are judged one by one. The numbers stand in a record
under these names:

  task/METRIC   of the one task of a run, whatever it is called, so that runs
                on other draws of the same task can be compared
  NAME/METRIC   of the task NAME of a mixture
  average       the mean over tasks of the mean of a task's metrics of
                predictions, as T5 averages GLUE: MNLI's two development sets
                are one task. Metrics of scores have other units and are left
                out of it.

Inputs of a task are decoded at one length, the smallest power of two that
holds them all, so that there is one program to compile for each such length.
Targets are scored as the model is trained on them, cut where they are longer
than TASK_FEATURE_LENGTHS. Every process decodes and scores its part of a batch
and judges all of it.
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

from t5x_variants import errors, logs
from t5x_variants.distributed import partitioning
from t5x_variants.model import decoding, network

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


class Scorer:
  """The examples of a split, and the metrics of what a model gives for them.

  Attributes:
    tasks: a `data.examples.Examples` for each task.
    predicted: those that have metrics of predictions.
    scored: those that have metrics of scores.
  """

  def __init__(self, dataset, settings: Settings):
    """Reads the examples of `dataset`, a `data.config.DatasetConfig`."""
    self.tasks = []
    if settings.count != 0:
      self.tasks = dataset.examples(settings.count)
    self.predicted = [t for t in self.tasks if t.predict_metric_fns]
    self.scored = [t for t in self.tasks if t.score_metric_fns]
    self._settings = settings
    for task in self.tasks:
      if task.not_computed:
        logs.say(
          f'Metrics of {task.name}, split {dataset.split!r}, that take neither '
          'predictions nor scores alone are not computed: '
          f'{", ".join(task.not_computed)}.'
        )

  @property
  def measured(self) -> list:
    """Those of `tasks` that have metrics."""
    return [t for t in self.tasks if t in self.predicted or t in self.scored]

  @property
  def names(self) -> list[str]:
    """The names of all numbers that `metrics` gives."""
    found = [
      f'{self._label(task)}/{name}'
      for task in self.measured
      for name in task.metric_names
    ]
    return [*found, AVERAGE] if self.predicted else found

  def metrics(
    self,
    texts: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float] | np.ndarray],
  ) -> dict[str, float]:
    """The metrics of all tasks.

    Args:
      texts: by task a prediction for each example, of those in `predicted`.
      scores: by task a log-likelihood for each target, of those in `scored`
        or of none.

    Returns:
      Numbers by name; {} where no task has one.
    """
    found: dict[str, float] = {}
    means = collections.defaultdict(list)
    for task in self.measured:
      values = {}
      if task in self.predicted:
        values = task.predict_metrics(texts[task.name])
      if values:
        mean = statistics.fmean(values.values())
        means[_SECTION.sub('', task.name)].append(mean)
      if task.name in scores:
        more = task.score_metrics(scores[task.name])
        if both := values.keys() & more.keys():
          raise errors.UserError(
            f'The task {task.name} has two metrics called {min(both)!r}, of '
            'predictions and of scores: give one of them another name.'
          )
        values |= more
      label = self._label(task)
      found |= {f'{label}/{name}': value for name, value in values.items()}
    if means:
      average = statistics.fmean(map(statistics.fmean, means.values()))
      found[AVERAGE] = average
    return found

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
      f'{", ".join(task.name for task in self.tasks)} has no metric: give the '
      'task metric_fns'
    )


class Evaluator(Scorer):
  """Decodes and scores the same examples whenever it is called."""

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
    self._lengths = dataset.task_feature_lengths
    length = settings.decode_length
    length = self._lengths['targets'] if length is None else length
    errors.check_positive('DECODE_LENGTH', length)
    unit = mesh.shape['data']
    errors.check_positive('DECODE_BATCH_SIZE', settings.batch_size)
    self._rows = -(-settings.batch_size // unit) * unit
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._decode = jax.jit(
      functools.partial(
        settings.decoder,
        model,
        length=length,
        eos_id=self.tasks[0].vocabulary.eos_id,
      ),
      out_shardings=everywhere,
    )
    self._score = jax.jit(
      functools.partial(decoding.log_probabilities, model),
      out_shardings=everywhere,
    )

  def __call__(self, params: Mapping) -> dict[str, float]:
    """The metrics of a model; {} where no task has one."""
    return self.metrics(
      self.predict(params, self.predicted), self.score(params)
    )

  def predict(self, params: Mapping, tasks: Iterable) -> dict[str, list[str]]:
    """A text for each example, by task."""
    return {task.name: self._predict(params, task) for task in tasks}

  def _predict(self, params: Mapping, task) -> list[str]:
    found = []
    for start, inputs in self._batches(task.input_ids, 'inputs'):
      tokens, _ = self._decode(params, inputs, jax.random.key(start))
      tokens = np.asarray(jax.device_get(tokens))[:, 0]
      found += [task.text(row) for row in tokens[: len(task) - start]]
    return found

  def score(self, params: Mapping) -> dict[str, np.ndarray]:
    """The log-likelihood of each target, in nats, of the tasks in `scored`."""
    found = {}
    for task in self.scored:
      both = zip(
        self._batches(task.input_ids, 'inputs'),
        self._batches(task.target_ids, 'targets'),
        strict=True,
      )
      parts = [self._score(params, i, t) for (_, i), (_, t) in both]
      found[task.name] = np.concatenate(jax.device_get(parts))[: len(task)]
    return found

  def _batches(self, ids: Sequence[np.ndarray], feature: str):
    """Yields numbers of first rows, and rows [rows, width] on the devices."""
    longest = max(map(len, ids))
    rounded = max(_SHORTEST, 1 << (longest - 1).bit_length())
    width = max(longest, min(rounded, self._lengths[feature]))
    where = NamedSharding(self._mesh, partitioning.BATCH_SPEC)
    for start in range(0, len(ids), self._rows):
      rows = np.zeros((self._rows, width), np.int32)
      for row, part in zip(rows, ids[start : start + self._rows], strict=False):
        row[: len(part)] = part
      # Every process has all rows and gives its devices theirs.
      yield (
        start,
        jax.make_array_from_callback(rows.shape, where, rows.__getitem__),
      )


def shown(values: Mapping[str, float]) -> str:
  """Metrics in a line: 'task/accuracy 71.00, average 71.00'."""
  return ', '.join(f'{name} {value:.2f}' for name, value in values.items())
