"""What changes when a trained model's activation becomes learnable.

  python tools/warm_start.py [--source geglu] [--variant rational_glu]
    [--source_steps 200] [--steps 50] [--keep FOLDER]

Trains the tiny model on the embedded corpus with one variant, then starts
another one from its weights (INITIAL_CHECKPOINT_PARTIAL) and trains on. Prints
by how much the logits of held-out rows and the held-out loss move before the
first step, and the held-out loss after the last. A few minutes on two CPU
cores.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import tempfile

import gin
import jax
import numpy as np
import optax

from t5x_variants import errors, logs
from t5x_variants.cli import gin_utils
from t5x_variants.data import config as data_config
from t5x_variants.model import parameters
from t5x_variants.run_dir import records
from t5x_variants.training import train_state
from t5x_variants.weights import matching, saved

ROOT = pathlib.Path(__file__).resolve().parent.parent
_ROWS = 8
_TOKENS = ('encoder_input', 'decoder_input', 'decoder_target')
_PACKED = (
  'encoder_segment_ids',
  'decoder_segment_ids',
  'encoder_positions',
  'decoder_positions',
)


def main() -> None:
  """Runs both trainings and prints the comparison."""
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('--source', default='geglu', help='the first variant')
  parser.add_argument('--variant', default='rational_glu', help='the second')
  parser.add_argument('--source_steps', type=int, default=200)
  parser.add_argument('--steps', type=int, default=50)
  parser.add_argument('--keep', help='a folder for the two run directories')
  options = parser.parse_args()
  logs.quiet()
  with contextlib.ExitStack() as stack:
    folder = options.keep or stack.enter_context(tempfile.TemporaryDirectory())
    folder = pathlib.Path(folder).absolute()
    runs = [folder / name for name in ('source', 'warm')]
    train(options.source, runs[0], options.source_steps)
    train(
      options.variant,
      runs[1],
      options.steps,
      f"--gin.INITIAL_CHECKPOINT_PATH='{runs[0]}'",
      '--gin.INITIAL_CHECKPOINT_PARTIAL=True',
    )
    report(options.source, options.variant, *runs)


def train(variant: str, run: pathlib.Path, steps: int, *more: str) -> None:
  """Trains the tiny model as the README's command does."""
  files = ('models/tiny', f'variants/{variant}', 'data/embedded')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 't5x_variants.train'),
      *(f'--gin_file=gin/{file}.gin' for file in (*files, 'runs/pretrain')),
      f"--gin.MODEL_DIR='{run}'",
      f'--gin.TRAIN_STEPS={steps}',
      *more,
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  if done.returncode:
    raise SystemExit(done.returncode)


def report(
  source: str, variant: str, before: pathlib.Path, after: pathlib.Path
) -> None:
  """Prints what moved."""
  old = logits(before, before)
  new = logits(after, before)
  change = np.abs(new - old)
  print(
    f'logits of {_ROWS} held-out rows at the start: largest change '
    f'{change.max():.2e}, root mean square {rms(new - old):.2e}, of logits '
    f'of root mean square {rms(old):.2f}'
  )
  start, *_, end = [record['loss'] for record in records.read(after, 'eval')]
  last = records.read(before, 'eval')[-1]['loss']
  print(f'held-out loss of {source} at its end: {last:.5f}')
  print(
    f'held-out loss of {variant} at its start: {start:.5f} '
    f'(moved by {start - last:+.1e})'
  )
  print(
    f'held-out loss of {variant} at its end: {end:.5f} '
    f'(moved by {end - start:+.1e})'
  )


def rms(x: np.ndarray) -> float:
  """Root mean square."""
  return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def logits(described: pathlib.Path, weights: pathlib.Path) -> np.ndarray:
  """Logits of one run's model with another run's weights, where they fit."""
  gin.clear_config()
  model, _ = gin_utils.read_model([str(described / 'config.gin')])
  with gin.config_scope('eval'):
    dataset = gin_utils.configured(data_config.DatasetConfig)()
  batch = next(dataclasses.replace(dataset, batch_size=_ROWS).open())
  shapes, _ = parameters.shapes_and_axes(model)
  taken, _ = matching.initial(
    saved.open_checkpoint(weights),
    shapes,
    matching.variant_of(model.config),
    True,
  )
  tx = optax.identity()
  create = jax.jit(functools.partial(train_state.create, model, tx))
  state = train_state.with_weights(create(jax.random.key(0)), tx, taken)
  apply = jax.jit(functools.partial(model.apply, enable_dropout=False))
  values = apply(
    {'params': state.params},
    *(batch[f'{part}_tokens'] for part in _TOKENS),
    **{name: batch[name] for name in _PACKED},
  )
  return np.asarray(values)[batch['decoder_loss_weights'] > 0]


if __name__ == '__main__':
  try:
    main()
  except errors.UserError as error:
    raise SystemExit(f'error: {error}') from None
