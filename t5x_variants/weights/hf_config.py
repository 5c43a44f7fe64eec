"""config.json of transformers for a model of ours, and one of theirs compared.

`feed_forward_proj` names the block, with 'gated-' in front when it is gated.
What transformers has no name for goes with modeling_t5x_variants.py, which is
copied beside the weights. `tie_word_embeddings` false is T5 1.1: an output
matrix of its own on the decoder's output as it is. With true the output
matrix is the token table, after d_model^-0.5.
"""

import pathlib
import re
from collections.abc import Mapping

from t5x_variants import errors
from t5x_variants.model import network
from t5x_variants.weights import files

CODE_TYPE = 't5x_variants'
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
# Other names of the same function; without gate `gelu` is the exact form.
_SAME = {
  'gelu': 'gelu_python',
  'gelu_pytorch_tanh': 'gelu_new',
  'swish': 'silu',
}
_TYPES = ('t5', 'mt5', CODE_TYPE)
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
  name = config.feed_forward.activation.name
  base = name.partition('(')[0]
  gated = 'gated-' if config.feed_forward.gated else ''
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
  name = config.feed_forward.activation.name
  version = re.search(r'version=(\w)', name)
  initial = config.feed_forward.activation.init()
  return result | {
    'architectures': ['T5VariantsForConditionalGeneration'],
    'model_type': CODE_TYPE,
    'auto_map': {
      'AutoConfig': f'{MODELING.stem}.T5VariantsConfig',
      'AutoModelForSeq2SeqLM': (
        f'{MODELING.stem}.T5VariantsForConditionalGeneration'
      ),
    },
    'activation': {
      'name': name.partition('(')[0],
      'version': version[1] if version else 'A',
      # In the order in which transformers writes them back.
      'coefficients': {key: initial[key].tolist() for key in sorted(initial)},
    },
  }


def check(
  folder: pathlib.Path, theirs: Mapping, config: network.T5Config
) -> None:
  """Compares what the shapes of tensors do not tell.

  Args:
    folder: which holds it, for the message.
    theirs: the content of config.json.
    config: the model that it should describe.

  Raises:
    errors.UserError: it describes another function.
  """
  _check_type(folder, theirs)
  lines = _differences(theirs, config)
  if lines:
    raise errors.UserError(
      f'The folder {folder} holds another model:\n'
      + '\n'.join(lines)
      + '\nGive the model and variant files that describe it.'
    )


def _check_type(folder: pathlib.Path, theirs: Mapping) -> None:
  kind = theirs.get('model_type')
  if kind in _TYPES:
    return
  why = ''
  if kind == 'umt5':
    why = (
      ', which has a position bias in every layer where these models have one '
      'for each stack'
    )
  raise errors.UserError(
    f'The folder {folder} holds a model of the type {files.short(kind)}{why}; '
    f'the types that can be imported are {", ".join(_TYPES)}.'
  )


def _differences(theirs: Mapping, config: network.T5Config) -> list[str]:
  ours = config_of(config)
  pairs = {
    key: (theirs.get(key, FIXED.get(key)), ours[key])
    for key in ('num_heads', 'd_kv', *FIXED)
  }
  pairs['feed_forward_proj'] = _block(theirs), _block(ours)
  pairs['activation'] = _lengths(theirs), _lengths(ours)
  lines = [
    f'  {key}: {files.short(have)} there, {files.short(need)} in this model'
    for key, (have, need) in pairs.items()
    if have != need
  ]
  scaled = _scales_logits(theirs)
  if scaled != config.logits_via_embedding:
    lines.append(
      f'  its logits are {"" if scaled else "not "}scaled by d_model^-0.5 '
      '(tie_word_embeddings, scale_decoder_outputs), this model has '
      f'logits_via_embedding={config.logits_via_embedding}'
    )
  return lines


def _value(theirs: Mapping, key: str, kind: type, default):
  """A value of config.json, checked to be of a type."""
  value = theirs.get(key)
  if value is None:
    return default
  if not isinstance(value, kind):
    raise errors.UserError(
      f'The setting {key} in config.json is {files.short(value)}; it must be a '
      f'{kind.__name__}.'
    )
  return value


def _block(described: Mapping) -> str:
  """The feed-forward block, in one spelling for each function."""
  default = 'gated-gelu' if described.get('model_type') == 'mt5' else 'relu'
  projection = _value(described, 'feed_forward_proj', str, default)
  name = projection.rpartition('-')[2]
  if projection == 'gated-gelu':
    name = 'gelu_new'
  gated = projection.startswith('gated-')
  if described.get('model_type') != CODE_TYPE:
    # transformers writes what it makes of the projection beside it, and takes
    # that when it reads.
    name = _value(described, 'dense_act_fn', str, name)
    gated = _value(described, 'is_gated_act', bool, gated)
  name = _SAME.get(name, name)
  if gated:
    return 'gated-' + ('gelu' if name == 'gelu_new' else name)
  return name


def _lengths(described: Mapping) -> dict | None:
  """`activation` with the numbers of coefficients, which older files have."""
  activation = _value(described, 'activation', dict, None)
  if activation is None:
    return None
  coefficients = _value(activation, 'coefficients', dict, {})
  lengths = {
    key: len(value) if isinstance(value, list) else value
    for key, value in coefficients.items()
  }
  return {**activation, 'coefficients': lengths}


def _scales_logits(theirs: Mapping) -> bool:
  """Whether the decoder's output is scaled by d_model^-0.5 before the logits.

  Up to transformers 4 that came with tied matrices; transformers 5 ties them
  in every case, keeps a setting of its own for T5, and never scales in mT5.
  """
  mt5 = theirs.get('model_type') == 'mt5'
  tied = _value(theirs, 'tie_word_embeddings', bool, not mt5)
  version = _value(theirs, 'transformers_version', str, '5')
  if mt5 and int(re.findall(r'^\d{0,4}', version)[0] or 5) >= 5:
    return False
  return _value(theirs, 'scale_decoder_outputs', bool, tied)


def ties_unscaled_logits(theirs: Mapping) -> bool:
  """Whether the token table itself, unscaled, makes the logits.

  transformers 5 does so in a T5 1.1 or mT5 that it made from a new
  configuration, and then saves no output matrix. A model without a head has
  none either, and only its architecture tells.
  """
  architectures = theirs.get('architectures')
  return (
    theirs.get('tie_word_embeddings', True) is True
    and isinstance(architectures, list)
    and any(str(a).endswith('ForConditionalGeneration') for a in architectures)
    and not _scales_logits(theirs)
  )
