"""Gin files of earlier versions, in the names of today.

A run directory's config.gin names the modules and the parameters of the version
that wrote it. To rename something that such a file may name, add a row.
"""

import re

# Modules below t5x_variants, as they were before version 0.1.
MODULES = {
  'compiling': 'tpu.compiling',
  'data.benchmarks': 'data.benchmarks.registry',
  'data.corpora': 'data.text.corpora',
  'data.embedded': 'data.prepared.embedded',
  'data.embedded_tasks': 'data.text.embedded_tasks',
  'data.low_data': 'data.tasks.low_data',
  'data.scores': 'data.tasks.metrics',
  'data.tasks': 'data.tasks.registry',
  'data.vocabularies': 'data.text.vocabularies',
  'decoding': 'model.decoding',
  'evaluation': 'inference.evaluation',
  'inference': 'inference.inference',
  'mlp': 'model.mlp',
  'network': 'model.network',
  'optimizer': 'training.optimizer',
  'partitioning': 'distributed.partitioning',
  'schedules': 'training.schedules',
  'sweeps': 'analysis.sweeps',
  'task_metrics': 'training.task_metrics',
  'trainer': 'training.trainer',
  'training_loop': 'training.training_loop',
}
# Parameters, by the last three parts of their names, and the names of today.
# None is for a parameter that is gone.
PARAMETERS = {
  'trainer.train.optimizer': 'programs.OptimizationConfig.optimizer',
  'trainer.train.learning_rate': 'programs.OptimizationConfig.learning_rate',
  'trainer.train.num_microbatches': (
    'programs.OptimizationConfig.num_microbatches'
  ),
  'trainer.train.label_smoothing': (
    'programs.OptimizationConfig.label_smoothing'
  ),
  'trainer.train.z_loss': 'programs.OptimizationConfig.z_loss',
  'trainer.train.frozen': 'programs.OptimizationConfig.frozen',
  'trainer.train.eval_dataset': 'evaluator.EvaluationConfig.dataset',
  'trainer.train.task_decoding': 'evaluator.EvaluationConfig.task_decoding',
  'trainer.train.best_metric': 'evaluator.EvaluationConfig.best_metric',
  'trainer.train.early_stopping_patience': (
    'evaluator.EvaluationConfig.early_stopping_patience'
  ),
  'trainer.train.test_split': 'evaluator.EvaluationConfig.test_split',
  'trainer.train.max_to_keep': 'checkpoints.CheckpointConfig.max_to_keep',
  'trainer.train.keep_period': 'checkpoints.CheckpointConfig.keep_period',
  'trainer.train.initial_checkpoint': 'matching.InitialWeightsConfig.path',
  'trainer.train.initial_checkpoint_partial': (
    'matching.InitialWeightsConfig.partial'
  ),
  'trainer.train.periods': None,
  'network.T5Config.activation': 'mlp.FeedForwardConfig.activation',
  'network.T5Config.gated': 'mlp.FeedForwardConfig.gated',
  'network.T5Config.ffn_implementation': (
    'mlp.FeedForwardConfig.implementation'
  ),
  'network.T5Config.ffn_save': 'mlp.FeedForwardConfig.save',
  'training_loop.Periods.log': 'trainer.train.log_period',
  'training_loop.Periods.eval': 'evaluator.EvaluationConfig.period',
  'training_loop.Periods.eval_steps': 'evaluator.EvaluationConfig.steps',
  'training_loop.Periods.checkpoint': 'checkpoints.CheckpointConfig.period',
}
# What refers to the functions that these parameters are of, and where they are.
_LINKS = {
  'programs.OptimizationConfig': ('trainer.train.optimization', 'training'),
  'evaluator.EvaluationConfig': ('trainer.train.evaluation', 'training'),
  'checkpoints.CheckpointConfig': ('trainer.train.checkpointing', 'training'),
  'mlp.FeedForwardConfig': ('network.T5Config.feed_forward', 'model'),
  'matching.InitialWeightsConfig': ('trainer.train.initial_weights', 'weights'),
}
_FIRST = 'from __gin__ import dynamic_registration\n'
_IMPORT = re.compile(
  r'^from t5x_variants((?:\.\w+)*) import (\w+)( as \w+)?$', re.M
)
_BINDING = re.compile(
  r'^((?:\w+/)*)(?:\w+\.)*(\w+\.\w+\.\w+)( = .*(?:\n[ \t]+.*)*)$', re.M
)


def updated(text: str) -> str:
  """A gin file with the imports and parameters that it would have today.

  Args:
    text: a gin file with one binding a line, as gin writes config.gin. A file
      that names nothing of earlier versions is returned as it is.
  """
  # Those that need a link, and the scope of a binding of each.
  functions: dict[str, str] = {}

  def rename(match: re.Match) -> str:
    scope, name, value = match.groups()
    if name not in PARAMETERS:
      return match[0]
    new = PARAMETERS[name]
    if new is None:
      return ''
    functions.setdefault(new.rpartition('.')[0], scope)
    return f'{scope}{new}{value}'

  text = _IMPORT.sub(_import_of_today, _BINDING.sub(rename, text))
  links = [
    (scope, function, *_LINKS[function])
    for function, scope in functions.items()
    if function in _LINKS
  ]
  if not links:
    return text
  bindings = [
    f'{s}{caller} = @{function}()\n' for s, function, caller, _ in links
  ]
  imports = [
    f'from t5x_variants.{room} import {function.partition(".")[0]}\n'
    for _, function, _, room in links
  ]
  imports = [line for line in imports if line not in text]
  # gin wants this line before all other imports, and those before their use.
  head, first, rest = text.partition(_FIRST)
  if not rest.endswith('\n'):
    rest += '\n'
  return ''.join([head, first, *imports, rest, *bindings])


def _import_of_today(match: re.Match) -> str:
  """An import of the same module from where it is, under the same name."""
  package, name, alias = match.groups()
  old = f'{package}.{name}'.removeprefix('.')
  if old not in MODULES:
    return match[0]
  room, _, new = MODULES[old].rpartition('.')
  alias = alias or ('' if name == new else f' as {name}')
  return f'from t5x_variants.{room} import {new}{alias}'
