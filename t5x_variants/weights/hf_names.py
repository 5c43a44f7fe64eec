"""What transformers calls the parameters of a T5.

Its layers are unrolled, its matrices transposed (torch keeps [out, in]), and
each sublayer of a block is numbered: attention 0, in the decoder attention to
the encoder 1, and the feed-forward block last. Coefficients of activations
have the names that modeling_t5x_variants.py gives them.
"""

import re

HEAD = 'decoder/logits_dense/kernel'
_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_SUBLAYERS = {
  'encoder': {'attention': (0, 'SelfAttention'), 'mlp': (1, None)},
  'decoder': {
    'self_attention': (0, 'SelfAttention'),
    'encoder_decoder_attention': (1, 'EncDecAttention'),
    'mlp': (2, None),
  },
}
_NORMS = {
  'pre_attention_layer_norm': 0,
  'pre_self_attention_layer_norm': 0,
  'pre_cross_attention_layer_norm': 1,
}
_LAYER = re.compile(r'(encoder|decoder)/layers_(\d+)/(.+)')


def name_of(name: str) -> tuple[str, bool]:
  """Their name of a parameter of ours, and whether it is transposed there.

  Args:
    name: of an unrolled model, `encoder/layers_0/mlp/wi_0/kernel`.
  """
  if name == 'token_embedder/embedding':
    return 'shared.weight', False
  if name == HEAD:
    return 'lm_head.weight', True
  found = _LAYER.fullmatch(name)
  if not found:
    stack, what = name.split('/', 1)
    if what == 'relpos_bias/rel_embedding':
      where = 'block.0.layer.0.SelfAttention.relative_attention_bias'
      return f'{stack}.{where}.weight', True
    return f'{stack}.final_layer_norm.weight', False
  stack, layer, what = found.groups()
  inside, transposed = _within_layer(stack, what)
  return f'{stack}.block.{layer}.layer.{inside}', transposed


def _within_layer(stack: str, what: str) -> tuple[str, bool]:
  part, *rest = what.split('/')
  if part.endswith('_layer_norm'):
    index = _NORMS.get(part, len(_SUBLAYERS[stack]) - 1)
    return f'{index}.layer_norm.weight', False
  index, attention = _SUBLAYERS[stack][part]
  if attention:
    return f'{index}.{attention}.{_ATTENTION[rest[0]]}.weight', True
  if rest[0] == 'activation':
    return f'{index}.DenseReluDense.act.{rest[1]}', False
  return f'{index}.DenseReluDense.{rest[0]}.weight', True
