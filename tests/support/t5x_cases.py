"""A small model, its parameters and a batch, as t5x's trainer has them."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from configs import t5_config

from t5x_variants.model import network, parameters

ROOT = pathlib.Path(__file__).parents[2]

B, K, L = 4, 12, 8
# With 128, so that Adafactor factors some matrices and keeps others whole.
SIZES = {
  'vocab_size': 128,
  'emb_dim': 128,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 1,
  'head_dim': 16,
  'mlp_dim': 96,
  'dropout_rate': 0.0,
}


def model(**choices):
  return network.Transformer(t5_config(**{**SIZES, **choices}))


def batch():
  """Two packed examples a row, and padding."""
  rng = np.random.default_rng(0)

  def lay(length, first, second):
    ids = np.repeat([1, 2, 0], [first, second, length - first - second])
    ids = np.broadcast_to(ids, (B, length)).astype(np.int32)
    tokens = rng.integers(2, SIZES['vocab_size'], (B, length)) * (ids > 0)
    return tokens.astype(np.int32), ids

  inputs, input_ids = lay(K, 5, 6)
  targets, target_ids = lay(L, 3, 4)
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  shifted[:, 3] = 0
  return {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': shifted,
    'decoder_loss_weights': (targets > 0).astype(np.int32),
    'encoder_segment_ids': input_ids,
    'decoder_segment_ids': target_ids,
    'encoder_positions': np.zeros_like(inputs),
    'decoder_positions': np.zeros_like(targets),
  }


def randomised(module):
  """Parameters that are not where they start; coefficients near it."""
  shapes, _ = parameters.shapes_and_axes(module)
  rng = np.random.default_rng(1)

  def value(path, leaf):
    scale = 0.1 if len(leaf.shape) > 1 else 0.05
    centre = 0.0 if len(leaf.shape) > 1 else 1.0
    if path[-2].key == 'activation':
      centre = module.config.feed_forward.activation.init()[path[-1].key]
    x = centre + rng.normal(0, scale, leaf.shape)
    return jnp.asarray(x, jnp.float32)

  return jax.tree_util.tree_map_with_path(value, shapes)


def write_own_task(folder):
  """Writes the module and the gin file that docs/from_t5x.md shows."""
  text = (ROOT / 'docs/from_t5x.md').read_text(encoding='utf-8')
  for kind, name in (('python', 'my_tasks.py'), ('', 'my_task.gin')):
    block = re.search(rf'```{kind}\n# {name}\n(.*?)```', text, re.DOTALL)[1]
    (folder / name).write_text(block, encoding='utf-8')
