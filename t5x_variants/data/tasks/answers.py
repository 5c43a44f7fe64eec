"""What a task expects back as text: labels, metrics, and their checks.

seqio hands the decoded text of every prediction, and every target, to a
task's `postprocess_fn(text, example=..., is_target=...)`, and the lists of
what it returns to `metric_fn(targets, predictions)`. Here both are text
without white space at its ends. With labels, a target must be one of them; a
prediction that is none stays what it is, and metrics count it as wrong.
"""

import functools
import inspect

from t5x_variants import errors
from t5x_variants.data.tasks import metrics as scores
from t5x_variants.data.text import documents

_ARGUMENTS = (['targets', 'predictions'], ['targets', 'scores'])


def as_text(text, *, example=None, is_target: bool = False, labels=None) -> str:
  """Target or prediction as the metrics see it.

  Args:
    text: str, or bytes in UTF-8.
    example: unused; seqio passes it.
    is_target: whether it is a target.
    labels: those allowed of a target; None: any text.

  Returns:
    The text, stripped.
  """
  del example
  if isinstance(text, bytes):
    text = text.decode('utf-8', 'replace')
  text = text.strip()
  if is_target and labels is not None and text not in labels:
    raise errors.UserError(_outside(text, 'A target', labels))
  return text


def _outside(text: str, what: str, labels) -> str:
  return f'{what} is {text!r}; the labels of the task are {list(labels)}.'


def check_labels(labels, source) -> None:
  """Reads a source's files, if it has some, and refuses other targets.

  Args:
    labels: allowed targets.
    source: of `corpora.pairs`, or any other, of which nothing is read.

  Raises:
    errors.UserError: no labels, or a target outside them; it names file and
      line.
  """
  if isinstance(labels, str) or not all(isinstance(x, str) for x in labels):
    raise errors.UserError(
      f'LABELS is {labels!r}; it must be a list of strings.'
    )
  if len(set(labels)) < 2:
    raise errors.UserError(f'LABELS is {labels!r}; it must name two or more.')
  if not hasattr(source, 'numbered_documents'):
    return
  for path, line, document in source.numbered_documents():
    target = document.decode().split(documents.SEPARATOR)[1]
    if target not in labels:
      what = f'In {path}, line {line}, the target'
      raise errors.UserError(_outside(target, what, labels))


def metrics(metric_fns, labels=None) -> tuple:
  """Metric functions, the names among them looked up in `scores`.

  Args:
    metric_fns: functions of (targets, predictions), or names.
    labels: of the task, or None.

  Returns:
    The functions.

  Raises:
    errors.UserError: an unknown name, or a function that seqio could not call.
  """
  if isinstance(metric_fns, str):
    metric_fns = [metric_fns]
  found = tuple(
    scores.get(metric, labels) if isinstance(metric, str) else metric
    for metric in metric_fns
  )
  for metric in found:
    needed = [
      name
      for name, parameter in inspect.signature(metric).parameters.items()
      if parameter.default is parameter.empty
      and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if needed not in _ARGUMENTS:
      raise errors.UserError(
        f'The metric {name_of(metric)} takes {needed}; it must be a function of'
        ' (targets, predictions), such as those of data.tasks.metrics, or of'
        ' (targets, scores).'
      )
  return found


def name_of(function) -> str:
  """A function's name, and what it was bound to."""
  if isinstance(function, functools.partial):
    return f'{name_of(function.func)}{function.args}{function.keywords}'
  return f'{function.__module__}.{function.__qualname__}'
