"""Every variant trains by the README's command: fifty steps on real text."""

import math
import os
import pathlib
import subprocess
import sys

import pytest

from t5x_variants import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
VARIANTS = sorted(path.stem for path in ROOT.glob('gin/variants/*.gin'))


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_trains(variant, tmp_path):
  files = (
    'models/tiny',
    f'variants/{variant}',
    'data/embedded',
    'runs/pretrain',
  )
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      't5x_variants.train',
      *(f'--gin_file=gin/{file}.gin' for file in files),
      f"--gin.MODEL_DIR='{tmp_path}'",
      '--gin.TRAIN_STEPS=50',
      '--gin.CHECKPOINT_PERIOD=25',
      '--gin.LOG_PERIOD=5',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  first, last = metrics.read(tmp_path, 'eval')
  assert (first['step'], last['step']) == (0, 50)
  # From a random model's to below what the bytes' frequencies alone give.
  assert first['loss'] > math.log(256) > 3.4 > last['loss']
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '25',
    '50',
  ]
  info = (tmp_path / 'model-info.txt').read_text()
  learned = variant.split('_')[0] in ('rational', 'polyrelu', 'polynorm')
  assert ('/mlp/activation/' in info) == (learned or variant == 'xielu')
  print(f'{variant}: {first["loss"]:.3f} -> {last["loss"]:.3f}')
