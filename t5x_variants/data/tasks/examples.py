"""A split as single examples: to decode, and to judge what was decoded.

`pipeline` gives a model packed batches; here is what evaluation by a task's
own metrics needs of it: the rows to decode and to score, one by one and in
order, and from decoded texts and scores the metrics, by seqio's conventions:

  target      postprocess_fn(targets_pretokenized or the decoded target,
                             example=..., is_target=True)
  prediction  postprocess_fn(decoded text, example=..., is_target=False)
  score       the log-likelihood of the target's tokens, in nats
  metrics     metric_fn(targets, predictions) -> {name: number}
              metric_fn(targets, scores) -> {name: number}
"""

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_variants import errors
from t5x_variants.data.base import positions
from t5x_variants.data.base._tensorflow import tf
from t5x_variants.data.tasks import answers
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import texts

_logger = logging.getLogger('t5x_variants')


class Examples:
  """The examples of one task's split, in their order.

  Attributes:
    name: a short one of the task, that of its source ('glue_cola'), where no
      other task of the split has the same; else its own.
    vocabulary: of the targets, seqio's.
    input_ids: token ids of each input, int32 vectors, EOS included.
    target_ids: the same of each target.
    inputs: each input as text.
    targets: each target as text, uncut where the task keeps that.
    predict_metric_fns: the task's functions of (targets, predictions).
    score_metric_fns: the task's functions of (targets, scores).
    not_computed: names of the task's metrics of any other kind.
  """

  def __init__(self, task, examples: Sequence[Mapping], name: str):
    self.name = name
    self.vocabulary = task.output_features['targets'].vocabulary
    self.input_ids = [np.asarray(e['inputs'], np.int32) for e in examples]
    self.target_ids = [np.asarray(e['targets'], np.int32) for e in examples]
    self.inputs = [self._text(e, 'inputs') for e in examples]
    self.targets = [self._text(e, 'targets') for e in examples]
    self.predict_metric_fns = task.predict_metric_fns
    # The one that our tasks have for t5x: a run's record has it as its loss.
    self.score_metric_fns = [
      metric_fn
      for metric_fn in task.score_metric_fns
      if metric_fn is not tasks.nats_per_token
    ]
    self.not_computed = [
      *map(answers.name_of, task.predict_with_aux_metric_fns),
      *(type(metric).__name__ for metric in tasks.metric_objs(task)),
    ]
    self._task, self._examples = task, examples

  def __len__(self) -> int:
    return len(self._examples)

  def _text(self, example: Mapping, feature: str) -> str:
    whole = example.get(f'{feature}_pretokenized')
    if whole is None:
      return self.text(example[feature])
    return whole.decode() if isinstance(whole, bytes) else str(whole)

  def text(self, ids) -> str:
    """What the ids say, up to EOS."""
    return texts.decode(self.vocabulary, ids)

  @functools.cached_property
  def _judged_targets(self) -> list:
    return self._judged(self.targets, is_target=True)

  def _judged(self, found: Sequence[str], is_target: bool) -> list:
    return [
      self._task.postprocess_fn(text, example=example, is_target=is_target)
      for text, example in zip(found, self._examples, strict=True)
    ]

  def predict_metrics(self, predictions: Sequence[str]) -> dict[str, float]:
    """The task's metrics of a text for each example.

    Raises:
      errors.UserError: there are more or fewer texts than examples, or two
        metrics have one name.
    """
    self._check_count('predictions', predictions)
    predicted = self._judged(predictions, is_target=False)
    return self._values(self.predict_metric_fns, predicted)

  def score_metrics(
    self, scores: Sequence[float] | np.ndarray
  ) -> dict[str, float]:
    """The task's metrics of the log-likelihood of each target, in nats.

    Raises:
      errors.UserError: there are more or fewer scores than examples, or two
        metrics have one name.
    """
    self._check_count('scores', scores)
    return self._values(self.score_metric_fns, np.asarray(scores))

  def _check_count(self, what: str, given: Sequence | np.ndarray) -> None:
    if len(given) != len(self):
      raise errors.UserError(
        f'There are {len(given)} {what} and {len(self)} examples of'
        f' {self.name}: give one for each, in the order of the split.'
      )

  def _values(self, metric_fns: Sequence[Callable], given) -> dict[str, float]:
    """What functions of the targets and of these give, as numbers."""
    found = {}
    for metric_fn in metric_fns:
      for name, value in metric_fn(self._judged_targets, given).items():
        if name in found:
          raise errors.UserError(
            f'The task {self.name} has two metrics called {name!r}: give one of'
            ' them another name.'
          )
        try:
          found[name] = float(getattr(value, 'value', value))
        except (TypeError, ValueError):
          _say_no_number(self.name, name, type(value).__name__)
    return found

  @functools.cached_property
  def metric_names(self) -> tuple[str, ...]:
    """Of all metrics, seen by calling the targets predictions."""
    predicted = self.predict_metrics(self.targets)
    # No target is certain: a metric may divide by its score.
    return *predicted, *self.score_metrics(np.full(len(self), -1.0))


@functools.cache
def _say_no_number(task: str, name: str, kind: str) -> None:
  """Once, though every evaluation computes it."""
  _logger.warning(
    'The metric %r of %s is no number but %s, and stands in no record.',
    name,
    task,
    kind,
  )


def open_split(
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int] | None,
  split: str,
  seed: int = 0,
  count: int | None = None,
) -> list[Examples]:
  """The examples of a split, task by task.

  Args:
    mixture_or_task_name: a name registered with seqio.
    task_feature_lengths: tokens of 'inputs' and 'targets' at most.
    split: such as 'validation'; tasks of a mixture without it are left out.
    seed: of what the task draws, such as the noise of span corruption.
    count: the first so many of each task; None: all.

  Returns:
    One for each task, by name.

  Raises:
    errors.UserError: no such task or split, or a task has no example in it.
  """
  found = tasks.get(mixture_or_task_name)
  chosen = tasks.of_split(found, split)
  lengths = positions.feature_lengths(
    task_feature_lengths, found.output_features
  )
  names = [getattr(task.source, 'name', task.name) for task in chosen]
  if len(set(names)) < len(names):
    names = [task.name for task in chosen]
  return [
    Examples(task, _read(task, lengths, split, seed, count), name)
    for task, name in zip(chosen, names, strict=True)
  ]


def _read(task, lengths, split: str, seed: int, count: int | None) -> list:
  dataset = task.get_dataset(
    sequence_length=lengths,
    split=split,
    shuffle=False,
    seed=seed,
    num_epochs=1,
    try_in_mem_cache=False,
  )
  options = tf.data.Options()
  options.threading.private_threadpool_size = 2
  dataset = dataset.with_options(options)
  examples = list(itertools.islice(dataset.as_numpy_iterator(), count))
  if not examples:
    raise errors.UserError(
      f'The split {split!r} of {task.name} has no example: name another one, or'
      ' check the files it is read from.'
    )
  return examples
