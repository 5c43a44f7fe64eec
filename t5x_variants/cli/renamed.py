"""Where modules were that gin files of earlier versions import.

A run directory's config.gin names the modules of the version that wrote it.
"""

import re

# Below t5x_variants, of version 0.1 and before.
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
_IMPORT = re.compile(
  r'^from t5x_variants((?:\.\w+)*) import (\w+)( as \w+)?$', re.M
)


def updated(text: str) -> str:
  """A gin file with its imports as they are today, under the same names."""

  def replace(match: re.Match) -> str:
    package, name, alias = match.groups()
    old = f'{package}.{name}'.removeprefix('.')
    if old not in MODULES:
      return match[0]
    room, _, new = MODULES[old].rpartition('.')
    return f'from t5x_variants.{room} import {new}{alias or f" as {name}"}'

  return _IMPORT.sub(replace, text)
