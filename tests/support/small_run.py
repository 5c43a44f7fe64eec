"""A very small model trained on numbered rows, for tests of the loop."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import optax
from configs import t5_config

from t5x_variants.distributed import partitioning
from t5x_variants.model import network
from t5x_variants.run_dir import records
from t5x_variants.training import (
  checkpoints,
  evaluator,
  optimizer,
  programs,
  schedules,
  trainer,
)
from t5x_variants.weights import matching

VOCAB = 64
LOSSES = ('loss', 'z_loss', 'accuracy', 'gradient_norm', 'learning_rate')


class Killed(Exception):
  """Ends a run with nothing saved beyond its last checkpoint."""


def at_batch(number, sent=None):
  """A `before_batch` that sends a signal to this process, or raises Killed."""

  def before_batch(batch):
    if batch == number and sent is None:
      raise Killed
    if batch == number:
      os.kill(os.getpid(), sent)

  return before_batch


class Rows:
  """Batches whose rows are numbered, so that a test can count them."""

  vocab_size = VOCAB

  def __init__(self, dataset):
    self.dataset = dataset
    self.position = 0

  def __iter__(self):
    return self

  def __next__(self):
    size = self.dataset.batch_size
    rows = range(self.position, self.position + size)
    if self.dataset.last is not None and rows.stop > self.dataset.last:
      raise StopIteration
    self.dataset.seen.append(tuple(rows))
    self.position = rows.stop
    if self.dataset.before_batch:
      self.dataset.before_batch(self.position // size)
    tokens = np.stack(
      [np.random.default_rng(row).integers(1, VOCAB, 12) for row in rows]
    ).astype(np.int32)
    shifted = np.pad(tokens[:, :5], [(0, 0), (1, 0)])
    return {
      'encoder_input_tokens': tokens,
      'decoder_input_tokens': shifted,
      'decoder_target_tokens': tokens[:, :6],
      'decoder_loss_weights': np.ones_like(shifted),
    }

  def save(self, directory):
    text = json.dumps({'rows': self.position})
    pathlib.Path(directory, 'position.json').write_text(text)

  def restore(self, directory):
    text = pathlib.Path(directory, 'position.json').read_text()
    self.position = json.loads(text)['rows']


@dataclasses.dataclass
class Numbered:
  """Stands in for a DatasetConfig."""

  batch_size: int = 8
  task_feature_lengths: dict | None = None
  last: int | None = None
  before_batch: object = None
  seen: list = dataclasses.field(default_factory=list)

  def open(self, shard_index=0, num_shards=1):
    return Rows(self)


def periods(log=10, eval=1000, eval_steps=20, checkpoint=1000):
  """How often what happens, in steps; for `run`."""
  return {
    'log_period': log,
    'eval_period': eval,
    'eval_steps': eval_steps,
    'checkpoint_period': checkpoint,
  }


# A config of the trainer: what makes it, and its parameters by the options of
# `run` that give them.
GROUPS = {
  'optimization': (
    programs.OptimizationConfig,
    {
      'optimizer': 'optimizer',
      'learning_rate': 'learning_rate',
      'num_microbatches': 'num_microbatches',
      'label_smoothing': 'label_smoothing',
      'z_loss': 'z_loss',
      'frozen': 'frozen',
    },
  ),
  'evaluation': (
    evaluator.EvaluationConfig,
    {
      'eval_dataset': 'dataset',
      'eval_period': 'period',
      'eval_steps': 'steps',
      'task_decoding': 'task_decoding',
      'best_metric': 'best_metric',
      'early_stopping_patience': 'early_stopping_patience',
      'test_split': 'test_split',
    },
  ),
  'checkpointing': (
    checkpoints.CheckpointConfig,
    {
      'checkpoint_period': 'period',
      'max_to_keep': 'max_to_keep',
      'keep_period': 'keep_period',
    },
  ),
  'initial_weights': (
    matching.InitialWeightsConfig,
    {'initial_checkpoint': 'path', 'initial_checkpoint_partial': 'partial'},
  ),
}


def grouped(options):
  """The arguments of `trainer.train` from one flat set of options."""
  options = options | options.pop('periods', {})
  for name, (config, fields) in GROUPS.items():
    given = {
      field: options.pop(option)
      for option, field in fields.items()
      if option in options
    }
    options[name] = config(**given)
  return options


def mesh_of(data, model=1):
  return jax.make_mesh(
    (data, model),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: data * model],
  )


def run(
  model_dir,
  steps,
  dataset=None,
  activation='rational',
  dropout_rate=0.1,
  **options,
):
  """Trains a very small model; returns the training records."""
  config = t5_config(
    vocab_size=VOCAB,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=12,
    activation=activation,
    dropout_rate=dropout_rate,
  )

  def rule(axes, learning_rate):
    return optimizer.adafactor(
      axes,
      learning_rate,
      coefficients=optimizer.coefficient_adam(optax.constant_schedule(1e-3)),
    )

  defaults = {
    'train_dataset': dataset or Numbered(),
    'eval_dataset': Numbered(last=16),
    'optimizer': rule,
    'learning_rate': schedules.rsqrt(100, warmup_steps=100),
    'mesh': mesh_of(1),
    'logical_axis_rules': partitioning.standard_logical_axis_rules(),
    'z_loss': 1e-4,
    'periods': periods(log=1, eval=5, eval_steps=2, checkpoint=4),
  }
  trainer.train(
    network.Transformer(config),
    model_dir=str(model_dir)
    if isinstance(model_dir, pathlib.Path)
    else model_dir,
    total_steps=steps,
    **grouped(defaults | options),
  )
  return losses(model_dir)


def losses(model_dir, split='train'):
  found = records.read(model_dir, split)
  return {r['step']: tuple(r[k] for k in LOSSES if k in r) for r in found}
