"""The held-out loss of a checkpoint, over the whole split.

Training evaluates on the first EVAL_STEPS batches, so as not to wait; this is
the same sum over all of them.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import linen as nn

from t5x_variants import errors, metrics, network, partitioning, train_step
from t5x_variants.data import config as data_config
from t5x_variants.weights import placed

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
) -> Mapping[str, float]:
  """Prints the loss as a JSON object, and writes it.

  Args:
    model: the network.
    checkpoint: its weights, see `weights.placed.load`.
    dataset: the split; read once, whatever its `num_epochs`.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    num_microbatches: parts a batch is computed in, to save memory.
    eval_steps: batches at most; None reads all.
    output: a file for the JSON object; None writes none.

  Returns:
    `loss` (nats per target token), `accuracy`, `target_tokens`, `batches`,
    `step`.

  Raises:
    errors.UserError: wrong input, or no example in the split.
  """
  partitioning.check_batch(dataset.batch_size, mesh, num_microbatches)
  with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axis_rules):
    step, params = placed.load(model, checkpoint, mesh, logical_axis_rules)
    batches = dataset.open()
    data_config.check_vocabulary(batches, model.config.vocab_size)
    eval_step = jax.jit(train_step.make_eval_step(model, num_microbatches))
    total, count = None, 0
    for batch in itertools.islice(batches, eval_steps):
      sums = jax.device_get(
        eval_step(params, partitioning.global_batch(batch, mesh))
      )
      # In float64: a float32 sum stops growing after some million tokens.
      sums = jax.tree.map(np.float64, sums)
      total = sums if total is None else jax.tree.map(np.add, total, sums)
      count += 1
      if count % _BATCHES_A_LINE == 0:
        loss = metrics.per_token(total)['loss']
        metrics.say(f'{count} batches, loss so far {loss:.4f}')
  found = metrics.per_token(total)
  found = {
    'loss': found['loss'],
    'accuracy': found['accuracy'],
    'target_tokens': int(total['weights']),
    'batches': count,
    'step': step,
  }
  text = json.dumps(found)
  print(text)
  if output is not None:
    _write(output, text)
  return found


def _write(output: str, text: str) -> None:
  path = pathlib.Path(os.path.expanduser(output))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n', encoding='utf-8')
  except OSError as error:
    raise errors.UserError(
      f'EVAL_OUTPUT {output} cannot be written: {error.strerror}.'
    ) from error
