"""config.json of transformers for a model of ours.

`feed_forward_proj` names the block, with 'gated-' in front when it is gated.
What transformers has no name for goes with modeling_t5x_variants.py, which is
copied beside the weights. `tie_word_embeddings` false is T5 1.1: an output
matrix of its own on the decoder's output as it is. With true the output
matrix is the token table, after d_model^-0.5.
"""

import pathlib
import re

from t5x_variants import errors, network

MODELING = pathlib.Path(__file__).with_name('modeling_t5x_variants.py')
# Transformers' names of our activations, but for gelu.
_ACT2FN = {
  'relu': 'relu',
  'gelu_exact': 'gelu_python',
  'swish': 'silu',
  'sigmoid': 'sigmoid',
  'linear': 'linear',
  'squared_relu': 'relu2',
}
# Those that modeling_t5x_variants.py computes.
LEARNED = ('xielu', 'rational', 'polyrelu', 'polynorm')
# Ours, where T5's config leaves a choice.
FIXED = {
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
  'layer_norm_epsilon': 1e-6,
}
# Of T5, and of seqio's vocabularies.
TOKEN_IDS = {
  'pad_token_id': 0,
  'eos_token_id': 1,
  'decoder_start_token_id': 0,
}


def feed_forward_proj(config: network.T5Config) -> tuple[str, bool]:
  """What config.json calls the block, and whether transformers knows it.

  Raises:
    errors.UserError: neither transformers nor our modeling file has it.
  """
  name = config.activation.name
  base = name.partition('(')[0]
  gated = 'gated-' if config.gated else ''
  if name == 'gelu':
    # Gated, T5 has always read 'gelu' as the tanh form.
    return gated + ('gelu' if gated else 'gelu_new'), True
  if name in _ACT2FN:
    return gated + _ACT2FN[name], True
  if base in LEARNED:
    return gated + base, False
  raise errors.UserError(
    f'The activation {name!r} has no counterpart in transformers; those that '
    f'can be exported are {", ".join(["gelu", *_ACT2FN, *LEARNED])}. For '
    'another one, write its formula into a copy of '
    'modeling_t5x_variants.py.'
  )


def config_of(config: network.T5Config) -> dict:
  """config.json of a model.

  Raises:
    errors.UserError: the block cannot be expressed.
  """
  projection, known = feed_forward_proj(config)
  result = {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'num_heads': config.num_heads,
    **FIXED,
    'dropout_rate': config.dropout_rate,
    'feed_forward_proj': projection,
    'is_encoder_decoder': True,
    'tie_word_embeddings': config.logits_via_embedding,
    'dtype': 'float32',
    'use_cache': True,
    **TOKEN_IDS,
  }
  if known:
    return result
  name = config.activation.name
  version = re.search(r'version=(\w)', name)
  lengths = {k: len(v) for k, v in config.activation.init().items()}
  return result | {
    'architectures': ['T5VariantsForConditionalGeneration'],
    'model_type': 't5x_variants',
    'auto_map': {
      'AutoConfig': f'{MODELING.stem}.T5VariantsConfig',
      'AutoModelForSeq2SeqLM': (
        f'{MODELING.stem}.T5VariantsForConditionalGeneration'
      ),
    },
    'activation': {
      'name': name.partition('(')[0],
      'version': version[1] if version else 'A',
      'coefficients': lengths,
    },
  }
