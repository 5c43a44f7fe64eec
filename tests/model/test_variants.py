"""Every variant trains by the README's command: fifty steps on real text."""

import math
import os
import pathlib
import subprocess
import sys

import pytest

from t5x_variants.run_dir import records

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANTS = sorted(path.stem for path in ROOT.glob('gin/variants/*.gin'))


def train(variant, model_dir, *settings):
  """Fifty steps of the tiny model."""
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
      f"--gin.MODEL_DIR='{model_dir}'",
      '--gin.TRAIN_STEPS=50',
      *settings,
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_trains(variant, tmp_path):
  train(variant, tmp_path, '--gin.CHECKPOINT_PERIOD=25', '--gin.LOG_PERIOD=5')
  first, last = records.read(tmp_path, 'eval')
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('variant', ['swiglu', 'rational', 'polynorm'])
def test_trains_the_same_by_the_kernels(variant, tmp_path):
  """The kernels, interpreted, against XLA: every step's loss."""
  losses = {}
  for implementation in ('xla', 'pallas_interpret'):
    run = tmp_path / implementation
    train(
      variant,
      run,
      f"--gin.FFN_IMPLEMENTATION='{implementation}'",
      '--gin.LOG_PERIOD=1',
    )
    losses[implementation] = [r['loss'] for r in records.read(run, 'train')]
  xla, kernels = losses.values()
  assert len(xla) == 50 and xla[-1] < xla[0] - 1
  off = max(abs(a / b - 1) for a, b in zip(xla, kernels, strict=True))
  print(f'{variant}: losses differ by {off:.1e} of themselves at most')
  assert off < 1e-4
