"""A seqio task of one's own under our trainer, as docs/from_t5x.md has it."""

import re
import sys

import gin
import numpy as np
import pytest
import seqio
from t5x_cases import write_own_task

from t5x_variants.cli import gin_utils, gin_values
from t5x_variants.data import config


@pytest.fixture
def settings(tmp_path, monkeypatch):
  """The gin file, in a folder that Python finds its module in."""
  write_own_task(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield str(tmp_path / 'my_task.gin')
  sys.modules.pop('my_tasks', None)
  if 'my_task' in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove('my_task')


def test_a_gin_file_that_imports_the_module_is_all(settings, tmp_path):
  """The rows are the task's, and a restart goes on with the next of them."""
  gin_utils.parse(
    [
      *('gin/models/tiny.gin', 'gin/variants/geglu.gin', settings),
      'gin/runs/pretrain.gin',
    ],
    ['MODEL_DIR = "x"', 'TRAIN_STEPS = 1', 'BATCH_SIZE = 2'],
  )
  assert gin_values.missing() == []
  make = gin.get_configurable(config.DatasetConfig)
  with gin.config_scope('train'):
    one, two = make().open(), make().open()
  batch = next(one)
  row = batch['encoder_input_tokens'][0]
  words = one.vocabulary.decode([int(token) for token in row])
  assert re.match(r'\d+ plus one', words), words
  one.save(str(tmp_path))
  two.restore(str(tmp_path))
  want, got = next(one), next(two)
  for name, value in want.items():
    np.testing.assert_array_equal(value, got[name])
