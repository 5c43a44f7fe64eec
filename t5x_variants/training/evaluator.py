"""Evaluation on held-out data: loss, accuracy, and the metrics of tasks."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import jax

from t5x_variants import errors
from t5x_variants.data import config as data_config
from t5x_variants.distributed import hosts, partitioning
from t5x_variants.model import network
from t5x_variants.run_dir import records
from t5x_variants.training import programs, task_metrics

# What every evaluation gives, see `records.per_token`.
FIGURES = ('loss', 'z_loss', 'accuracy')


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What a run is evaluated on, how often, and what follows from it.

  Attributes:
    dataset: the held-out split; None for no evaluation.
    period: steps between evaluations; one more at the start and at the end.
    steps: batches of the split in one evaluation.
    task_decoding: how the split's examples are decoded for the metrics that
      their tasks have; None for no such metrics.
    best_metric: a number of the 'eval' records; the checkpoint where it is
      best is kept.
    early_stopping_patience: the run ends after this many evaluations without
      a better one; None for no such end.
    test_split: a split of `dataset`. At the end the best checkpoint, without
      `best_metric` the last one, is evaluated on it for a 'test' record.
  """

  dataset: data_config.DatasetConfig | None = None
  period: int = 1000
  steps: int = 20
  task_decoding: task_metrics.Settings | None = None
  best_metric: str | None = None
  early_stopping_patience: int | None = None
  test_split: str | None = None

  def __post_init__(self):
    errors.check_positive('EVAL_PERIOD', self.period)
    errors.check_positive('EVAL_STEPS', self.steps)
    if self.test_split is not None and self.dataset is None:
      raise errors.UserError(
        f'TEST_SPLIT is {self.test_split!r} and there is no held-out data '
        '(EvaluationConfig.dataset), whose split it would be: set it to None.'
      )


class Evaluator:
  """Evaluates parameters on the same batches of a split every time."""

  def __init__(
    self,
    model: network.Transformer,
    batches: Iterable[Mapping],
    mesh: jax.sharding.Mesh,
    num_microbatches: int = 1,
    tasks: task_metrics.Evaluator | None = None,
  ):
    """Holds the batches; nothing is compiled yet.

    Args:
      model: the network.
      batches: of the split; an iterator can be evaluated once.
      mesh: devices, axes `data` and `model`.
      num_microbatches: parts a batch is computed in.
      tasks: decodes the split's examples for the metrics of tasks.
    """
    self._eval_step = programs.eval_step(model, num_microbatches)
    self._compiled: jax.stages.Compiled | None = None
    self._batches = batches
    self._mesh = mesh
    self._tasks = tasks

  def names(self) -> tuple[list[str], str]:
    """Names of the numbers it gives; why none is a task's, '' if some are."""
    if not self._batches:
      return [], ''
    if self._tasks is None:
      return list(
        FIGURES
      ), 'nothing is decoded (EvaluationConfig.task_decoding)'
    names = self._tasks.names
    return [*FIGURES, *names], '' if names else self._tasks.missing()

  def __call__(self, params: Mapping) -> dict[str, float]:
    """FIGURES per target token, their number, metrics of tasks.

    {} without a split.
    """
    if not self._batches:
      return {}
    sums = []
    for batch in self._batches:
      batch = partitioning.global_batch(batch, self._mesh)
      if self._compiled is None:
        self._compiled = self._eval_step.lower(params, batch).compile()
        hosts.meet()
      sums.append(self._compiled(params, batch))
    sums = jax.tree.map(lambda *x: sum(map(float, x)), *jax.device_get(sums))
    found = records.per_token(sums) | {'target_tokens': sums['weights']}
    return found if self._tasks is None else found | self._tasks(params)


def open_shard(
  dataset: data_config.DatasetConfig, model: network.Transformer, mesh
) -> data_config.Batches:
  """Opens this process's shard of a split.

  Raises:
    errors.UserError: the vocabulary is larger than the model's.
  """
  shard = partitioning.data_shard(mesh)
  batches = dataset.open(shard.index, shard.count)
  data_config.check_vocabulary(batches, model.config.vocab_size)
  return batches


def open_held_out(
  config: EvaluationConfig, model, mesh, num_microbatches: int
) -> Evaluator:
  """The evaluator of the first `config.steps` batches of the held-out split."""
  if config.dataset is None:
    return Evaluator(model, [], mesh)
  batches = open_shard(config.dataset, model, mesh)
  # Kept in memory, for each evaluation.
  found = list(itertools.islice(batches, config.steps))
  # A shard may end before another's; all hosts take as many steps.
  missing = hosts.largest(len(found)) - len(found)
  found += [batches.padding() for _ in range(missing)]
  tasks = _tasks(config, config.dataset, model, mesh)
  return Evaluator(model, found, mesh, num_microbatches, tasks)


def open_test(
  config: EvaluationConfig, model, mesh, num_microbatches: int
) -> Evaluator | None:
  """The evaluator of the whole test split, once; None without one.

  Raises:
    errors.UserError: there are several processes.
  """
  if config.test_split is None or config.dataset is None:
    return None
  if jax.process_count() > 1:
    raise errors.UserError(
      f'TEST_SPLIT is {config.test_split!r} and there are '
      f'{jax.process_count()} processes: set it to None and evaluate the best '
      'checkpoint on one host, with t5x_variants.evaluate.'
    )
  dataset = dataclasses.replace(config.dataset, split=config.test_split)
  batches = open_shard(dataset, model, mesh)
  tasks = _tasks(config, dataset, model, mesh)
  return Evaluator(model, batches, mesh, num_microbatches, tasks)


def _tasks(config, dataset, model, mesh) -> task_metrics.Evaluator | None:
  if config.task_decoding is None:
    return None
  return task_metrics.Evaluator(model, dataset, config.task_decoding, mesh)


def evaluation_line(values: Mapping[str, float]) -> str:
  """One line of what an evaluation gave."""
  line = (
    f'loss {values["loss"]:.4f} nats per target token, accuracy '
    f'{values["accuracy"]:.2%} of {int(values["target_tokens"]):,} tokens'
  )
  known = (*FIGURES, 'target_tokens')
  rest = {name: v for name, v in values.items() if name not in known}
  return f'{line}, {task_metrics.shown(rest)}' if rest else line
