"""A split as single examples: to decode, and to judge what was decoded.

`pipeline` gives a model packed batches; here is what evaluation by a task's
own metrics needs of it: the rows to decode, one by one and in order, and from
decoded texts the metrics, by seqio's conventions:

  target      postprocess_fn(targets_pretokenized or the decoded target,
                             example=..., is_target=True)
  prediction  postprocess_fn(decoded text, example=..., is_target=False)
  metrics     metric_fn(targets, predictions) -> {name: number}
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_variants.data import tasks, texts
from t5x_variants.data._tensorflow import seqio, tf
from t5x_variants.errors import UserError


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
    metric_names: of the task's functions of predictions; () without any.
  """

  def __init__(self, task, examples: Sequence[Mapping], name: str):
    self.name = name
    self.vocabulary = task.output_features['targets'].vocabulary
    self.input_ids = [np.asarray(e['inputs'], np.int32) for e in examples]
    self.target_ids = [np.asarray(e['targets'], np.int32) for e in examples]
    self.inputs = [self._text(e, 'inputs') for e in examples]
    self.targets = [self._text(e, 'targets') for e in examples]
    self._task, self._examples = task, examples

  def __len__(self) -> int:
    return len(self._examples)

  @property
  def has_metrics(self) -> bool:
    """Whether the task judges predictions."""
    return bool(self._task.predict_metric_fns)

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

  def metrics(self, predictions: Sequence[str]) -> dict[str, float]:
    """The task's metrics of a text for each example.

    Raises:
      UserError: there are more or fewer texts than examples, or the task has
        no metric of predictions.
    """
    if len(predictions) != len(self):
      raise UserError(
        f'there are {len(predictions)} predictions and {len(self)} examples of'
        f' {self.name}: give one for each, in the order of the split'
      )
    if not self.has_metrics:
      raise UserError(
        f'{self.name} has no metric of predictions: give the task metric_fns'
      )
    predicted = self._judged(predictions, is_target=False)
    found = {}
    for metric_fn in self._task.predict_metric_fns:
      for name, value in metric_fn(self._judged_targets, predicted).items():
        found[name] = float(getattr(value, 'value', value))
    return found

  @functools.cached_property
  def metric_names(self) -> tuple[str, ...]:
    """What `metrics` gives, seen by calling the targets predictions."""
    return tuple(self.metrics(self.targets)) if self.has_metrics else ()


def open_split(
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
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
    UserError: no such task or split, or a task has no example in it.
  """
  found = tasks.get(mixture_or_task_name)
  if split not in found.splits:
    raise UserError(
      f'split={split!r}: {mixture_or_task_name} has {sorted(found.splits)}'
    )
  chosen = [t for t in seqio.get_subtasks(found) if split in t.splits]
  names = [getattr(task.source, 'name', task.name) for task in chosen]
  if len(set(names)) < len(names):
    names = [task.name for task in chosen]
  return [
    Examples(
      task, _read(task, dict(task_feature_lengths), split, seed, count), name
    )
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
    raise UserError(f'{task.name}, split {split!r} has no example')
  return examples
