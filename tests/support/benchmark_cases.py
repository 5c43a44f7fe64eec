"""The benchmarks as tests read them: from folders of their official files."""

import json

import benchmark_files
import pytest

from t5x_variants.data.base._tensorflow import seqio
from t5x_variants.data.benchmarks import recipes
from t5x_variants.data.benchmarks import registry as benchmarks
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import vocabularies

LENGTHS = {'inputs': 200, 'targets': 40}
TEXTS = {
  (key, split) if isinstance(key, str) else key: texts
  for key, texts in benchmark_files.TEXTS.items()
  for split in (['train', 'validation'] if isinstance(key, str) else [key[1]])
}


def subtasks(name):
  return seqio.get_subtasks(tasks.get(name))


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """One for every module: a task keeps the folder it was registered with."""
  folder = tmp_path_factory.getbasetemp() / 'benchmarks'
  if not folder.exists():
    folder.mkdir()
    benchmark_files.write(folder)
  return folder


def benchmark(name):
  return name.rsplit('glue_', 1)[0] + 'glue' if 'glue' in name else name


def register(task, folder, **options):
  return benchmarks.register(
    task,
    vocabularies.byte(),
    str(folder / 'glue'),
    str(folder / 'super_glue'),
    str(folder / 'squad'),
    **options,
  )


def source(name, folder=None, data_dir=None, download=False):
  place = None if folder is None else str(folder / benchmark(name))
  recipe = benchmarks.RECIPES[name]
  return recipes.ExampleSource(name, recipe, place, data_dir, download)


def texts(found):
  """Examples as the rows of TEXTS."""
  return [
    (x['inputs'], x['targets'])
    + ((json.loads(x['gold']),) if 'gold' in x else ())
    for x in found
  ]
