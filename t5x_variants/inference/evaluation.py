"""The held-out loss of a checkpoint, and its tasks' metrics, over a split.

Training evaluates on the first EVAL_STEPS batches, so as not to wait; this is
the same sum over all of them. Where a task has metrics its inputs are decoded
and measured and its targets scored, see `task_metrics`. The predictions can be
written, and those of a file measured in their place, as JSON lines in the order
of the split:

  {"task": ..., "inputs": ..., "target": ..., "prediction": ...}
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn

from t5x_variants import errors, logs
from t5x_variants.data import config as data_config
from t5x_variants.distributed import partitioning
from t5x_variants.inference import load
from t5x_variants.model import network
from t5x_variants.run_dir import records
from t5x_variants.training import task_metrics, train_step

_BATCHES_A_LINE = 50


def evaluate(
  model: network.Transformer,
  *,
  checkpoint: str,
  dataset: data_config.DatasetConfig,
  mesh: jax.sharding.Mesh,
  logical_axis_rules: partitioning.Rules,
  num_microbatches: int = 1,
  eval_steps: int | None = None,
  output: str | None = None,
  task_decoding: task_metrics.Settings | None = None,
  predictions_output: str | None = None,
) -> Mapping[str, float]:
  """Prints the loss and the metrics as a JSON object, and writes it.

  Args:
    model: the network.
    checkpoint: its weights, see `inference.load.load`.
    dataset: the split; read once, whatever its `num_epochs`.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    num_microbatches: parts a batch is computed in, to save memory.
    eval_steps: batches at most; None reads all.
    output: a file for the JSON object; None writes none.
    task_decoding: how the examples are decoded; None: they are not.
    predictions_output: a file for what was decoded; None writes none.

  Returns:
    `loss` (nats per target token), `accuracy`, `target_tokens`, `batches`,
    `step`, and the metrics that the tasks have.

  Raises:
    errors.UserError: wrong input, or no example in the split.
  """
  partitioning.check_batch(dataset.batch_size, mesh, num_microbatches)
  _check_output('EVAL_OUTPUT', output)
  _check_output('PREDICTIONS_OUTPUT', predictions_output)
  with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axis_rules):
    step, params = load.load(model, checkpoint, mesh, logical_axis_rules)
    batches = dataset.open()
    data_config.check_vocabulary(batches, model.config.vocab_size)
    tasks = _evaluator(model, dataset, mesh, task_decoding, predictions_output)
    total, count = _total(
      model, params, batches, mesh, num_microbatches, eval_steps
    )
    measured = {}
    if tasks is not None:
      written = predictions_output is not None
      predictions = tasks.predict(
        params, tasks.tasks if written else tasks.predicted
      )
      measured = tasks.metrics(predictions, tasks.score(params))
      if predictions_output is not None:
        _write(
          'PREDICTIONS_OUTPUT',
          predictions_output,
          _lines(tasks.tasks, predictions),
        )
  found = records.per_token(total)
  tokens = int(total['weights'])
  if few := data_config.few_target_tokens(tokens):
    logs.say(f'WARNING: {few}')
  found = {
    'loss': found['loss'],
    'accuracy': found['accuracy'],
    'target_tokens': tokens,
    'batches': count,
    'step': step,
  } | measured
  text = json.dumps(found)
  print(text)
  if output is not None:
    _write('EVAL_OUTPUT', output, text + '\n')
  return found


def _total(
  model, params, batches, mesh, num_microbatches: int, steps: int | None
):
  """The sums of the batches, in float64, and how many there were."""
  eval_step = jax.jit(train_step.make_eval_step(model, num_microbatches))
  total, count = None, 0
  for batch in itertools.islice(batches, steps):
    sums = jax.device_get(
      eval_step(params, partitioning.global_batch(batch, mesh))
    )
    # In float64: a float32 sum stops growing after some million tokens.
    sums = jax.tree.map(np.float64, sums)
    total = sums if total is None else jax.tree.map(np.add, total, sums)
    count += 1
    if count % _BATCHES_A_LINE == 0:
      loss = records.per_token(total)['loss']
      logs.say(f'{count} batches, loss so far {loss:.4f}')
  return total, count


def _evaluator(model, dataset, mesh, settings, predictions_output):
  """What decodes the split; None if there is nothing to decode it for."""
  if settings is None:
    return None
  tasks = task_metrics.Evaluator(model, dataset, settings, mesh)
  if predictions_output is not None:
    if not tasks.tasks:
      raise errors.UserError(
        f'PREDICTIONS_OUTPUT is {predictions_output}, but {tasks.missing()}.'
      )
    return tasks
  return tasks if tasks.measured else None


def score(
  *,
  dataset: data_config.DatasetConfig,
  task_decoding: task_metrics.Settings,
  predictions: str,
  output: str | None = None,
) -> Mapping[str, float]:
  """The metrics of predictions in a file, without a model.

  Args:
    dataset: the split that they are of.
    task_decoding: of which `count` is used.
    predictions: JSON lines with "prediction", in the order of the split, task
      after task by name.
    output: a file for the JSON object; None writes none.

  Raises:
    errors.UserError: the file cannot be read, or is of another length than
      the split, or no task has a metric.
  """
  tasks = task_metrics.Scorer(dataset, task_decoding)
  of_scores = ''
  if tasks.scored:
    names = ', '.join(task.name for task in tasks.scored)
    of_scores = (
      f'the metrics of scores of {names} need a model (t5x_variants.evaluate)'
    )
  if not tasks.predicted:
    raise errors.UserError(
      f'There is nothing to compute: {of_scores or tasks.missing()}.'
    )
  if of_scores:
    logs.say(f'Not computed: {of_scores}.')
  found = _read(predictions)
  wanted = sum(map(len, tasks.tasks))
  if len(found) != wanted:
    raise errors.UserError(
      f'PREDICTIONS {predictions} has {len(found)} lines and the split has '
      f'{wanted} examples: give one line for each, in the order of the split.'
    )
  rest = iter(found)
  measured = tasks.metrics(
    {t.name: list(itertools.islice(rest, len(t))) for t in tasks.tasks}, {}
  )
  text = json.dumps(measured)
  print(text)
  if output is not None:
    _write('EVAL_OUTPUT', output, text + '\n')
  return measured


def _read(path: str) -> list[str]:
  """The predictions of a file of JSON lines."""
  try:
    lines = pathlib.Path(path).expanduser().read_bytes().splitlines()
  except OSError as error:
    raise errors.UserError(
      f'PREDICTIONS {path} cannot be read: {errors.reason(error)}.'
    ) from error
  found = []
  for number, line in enumerate(lines, 1):
    try:
      found.append(json.loads(line)['prediction'])
      if not isinstance(found[-1], str):
        raise TypeError
    except (ValueError, TypeError, KeyError) as error:
      raise errors.UserError(
        f'{path}, line {number} is no prediction: a line is a JSON object with '
        'the string "prediction".'
      ) from error
  return found


def _lines(tasks: Sequence, predictions: Mapping[str, list[str]]) -> str:
  records = (
    {'task': task.name, 'inputs': i, 'target': t, 'prediction': p}
    for task in tasks
    for i, t, p in zip(
      task.inputs, task.targets, predictions[task.name], strict=True
    )
  )
  return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records)


def _check_output(what: str, output: str | None) -> None:
  """Refuses a folder before there is something to write."""
  if output is not None and os.path.isdir(os.path.expanduser(output)):
    raise errors.UserError(
      f'{what} is {output!r}, which is a folder: name a file in it.'
    )


def _write(what: str, output: str, text: str) -> None:
  path = pathlib.Path(os.path.expanduser(output))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
  except OSError as error:
    raise errors.UserError(
      f'{what} {output} cannot be written: {errors.reason(error)}.'
    ) from error
