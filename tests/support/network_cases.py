"""Small models, their parameters, a batch, and what they make of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from configs import t5_config
from flax.core import unfreeze
from quick_jit import jit

from t5x_variants import activations
from t5x_variants.model import network

B, K, L, V = 2, 7, 5, 13
SIZES = {
  'vocab_size': V,
  'emb_dim': 8,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'head_dim': 4,
  'mlp_dim': 6,
  'dropout_rate': 0.0,
}


def model(**choices):
  return network.Transformer(t5_config(**{**SIZES, **choices}))


def batch(rows=B, seed=0):
  """Encoder inputs, decoder inputs, decoder targets."""
  rng = np.random.default_rng(seed)
  inputs = rng.integers(2, V, (rows, K))
  targets = rng.integers(2, V, (rows, L))
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return inputs, shifted, targets


@functools.cache
def variables_of(module):
  """Shapes and axes; nothing is computed or compiled."""
  init = functools.partial(module.init, enable_dropout=False)
  return unfreeze(jax.eval_shape(init, jax.random.key(0), *batch()))


@functools.cache
def params_of(module):
  """Random parameters; coefficients as they start."""
  rng = np.random.default_rng(1)

  def value(path, leaf):
    name = path[-1].key
    if path[-2].key == 'activation':
      start = activations.get(module.config.feed_forward.activation).init()[
        name
      ]
      return np.broadcast_to(start, leaf.shape)
    scale = 1 if name == 'embedding' else 0.4
    x = rng.normal(name == 'scale', scale, leaf.shape)
    return x.astype(np.float32)

  return jax.tree_util.tree_map_with_path(value, variables_of(module)['params'])


def forward(module, params, *tokens, enable_dropout=False, **kwargs):
  return module.apply(
    {'params': params}, *tokens, enable_dropout=enable_dropout, **kwargs
  )


def logits_of(module, params, *tokens, **kwargs):
  """The forward pass, compiled; flags of it must not be traced."""
  flags = {k: kwargs.pop(k) for k in list(kwargs) if type(kwargs[k]) is bool}
  function = functools.partial(forward, module, **flags)
  return jit(function)(params, *tokens, **kwargs)


def loss_of(module, params):
  inputs, shifted, targets = batch()
  logits = forward(module, params, inputs, shifted, targets)
  return -jnp.mean(
    jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
  )
