"""What the tests under transformers share: models, folders, logits."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from configs import t5_config
from flax import traverse_util
from flax.core import unfreeze

from t5x_variants.cli import gin_utils
from t5x_variants.model import network
from t5x_variants.weights import hugging_face, matching, source

ROOT = pathlib.Path(__file__).parents[2]
VARIANTS = sorted(path.stem for path in (ROOT / 'gin/variants').glob('*.gin'))
LEARNED = {
  'polynorm',
  'polynorm_glu',
  'polyrelu',
  'rational',
  'rational_glu',
  'xielu',
}
SIZES = {
  'vocab_size': 40,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 4,
  # transformers' generate fails where the decoder has more layers.
  'num_encoder_layers': 3,
  'num_decoder_layers': 2,
  'mlp_dim': 24,
  'dropout_rate': 0.0,
}


def of_variant(name):
  """The activation and gating that a variant file gives."""
  model, _ = gin_utils.read_model(
    ['gin/models/tiny.gin', f'gin/variants/{name}.gin']
  )
  return {
    'activation': model.config.feed_forward.activation,
    'gated': model.config.feed_forward.gated,
  }


def random_model(seed=0, **options):
  """A model whose parameters, norms and coefficients too, are all random."""
  model = network.Transformer(t5_config(**SIZES | options))
  tokens = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
    functools.partial(model.init, enable_dropout=False),
    jax.random.key(0),
    tokens,
    tokens,
    tokens,
  )['params']
  generator = np.random.default_rng(seed)

  def value(path, leaf):
    noise = generator.normal(size=leaf.shape)
    if path[-1] == 'kernel':
      return noise * leaf.shape[-2] ** -0.5
    if path[-2] == 'activation':
      start = model.config.feed_forward.activation.init()[path[-1]]
      return start * (1 + 0.1 * noise) + 0.01 * noise
    return 1 + 0.1 * noise if path[-1] == 'scale' else noise

  flat = traverse_util.flatten_dict(unfreeze(shapes))
  return model, traverse_util.unflatten_dict(
    {k: value(k, leaf).astype(np.float32) for k, leaf in flat.items()}
  )


def batch():
  generator = np.random.default_rng(1)
  inputs = generator.integers(2, SIZES['vocab_size'], (3, 9)).astype(np.int32)
  inputs[0, 5:] = inputs[2, 8:] = 0
  targets = generator.integers(2, SIZES['vocab_size'], (3, 7)).astype(np.int32)
  return inputs, np.pad(targets[:, :-1], ((0, 0), (1, 0))), targets


def our_logits(model, params, inputs, shifted, targets):
  apply = jax.jit(functools.partial(model.apply, enable_dropout=False))
  return np.asarray(apply({'params': params}, inputs, shifted, targets))


def export(folder, model, params):
  folder.mkdir()
  flat = traverse_util.flatten_dict(params, sep='/')
  hugging_face.write(folder, model.config, source.unrolled(flat))


def load(folder, learned):
  import transformers

  if learned:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(
      folder, trust_remote_code=True
    ).eval()
  return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def their_logits(loaded, inputs, shifted):
  import torch

  with torch.no_grad():
    return loaded(
      input_ids=torch.tensor(inputs, dtype=torch.long),
      attention_mask=torch.tensor(inputs > 0),
      decoder_input_ids=torch.tensor(shifted, dtype=torch.long),
    ).logits.numpy()


def assert_same_logits(loaded, model, params, rtol=0):
  """Fails unless transformers computes our logits."""
  inputs, shifted, targets = batch()
  ours = our_logits(model, params, inputs, shifted, targets)
  assert np.abs(ours).max() > 0.1
  np.testing.assert_allclose(
    their_logits(loaded, inputs, shifted), ours, rtol=rtol, atol=1e-4
  )


def assert_same(folder, model, params):
  names = traverse_util.flatten_dict(params, sep='/')
  found = hugging_face.open_folder(str(folder), model.config, names)
  jax.tree.map(
    np.testing.assert_array_equal, matching.exact(found, params, ''), params
  )
