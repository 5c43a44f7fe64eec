"""Folders of Hugging Face transformers: names, config.json, safetensors.

transformers' T5 has our parameters under other names and its matrices
transposed (torch keeps [out, in]); layers are unrolled. The token table is
`shared.weight`. T5 1.1 has an output matrix of its own and takes the
decoder's output as it is; T5 1.0 multiplies by the table, after d_model^-0.5.
config.json says which by `tie_word_embeddings`: false for T5 1.1, and
transformers 5 takes false to mean 'do not scale'.

`feed_forward_proj` names the block, 'gated-' in front when gated. What
transformers has no name for goes with modeling_t5x_variants.py, which is
copied beside the weights and loaded by trust_remote_code=True.
"""

import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from t5x_variants import errors, network
from t5x_variants.weights import source

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
MODELING = pathlib.Path(__file__).with_name('modeling_t5x_variants.py')
MODEL_TYPE = 't5x_variants'
# transformers' names of our activations, gated and ungated, but for gelu.
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
_FIXED = {
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
  'layer_norm_epsilon': 1e-6,
}
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
  """transformers' name of a parameter, and whether it is transposed there.

  Args:
    name: of an unrolled model, `encoder/layers_0/mlp/wi_0/kernel`.
  """
  if name == 'token_embedder/embedding':
    return 'shared.weight', False
  if name == 'decoder/logits_dense/kernel':
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
    **_FIXED,
    'dropout_rate': config.dropout_rate,
    'feed_forward_proj': projection,
    'is_encoder_decoder': True,
    'tie_word_embeddings': config.logits_via_embedding,
    'dtype': 'float32',
    'use_cache': True,
    **_token_ids(),
  }
  if known:
    return result
  name = config.activation.name
  version = re.search(r'version=(\w)', name)
  lengths = {k: len(v) for k, v in config.activation.init().items()}
  return result | {
    'architectures': ['T5VariantsForConditionalGeneration'],
    'model_type': MODEL_TYPE,
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


def _token_ids() -> dict[str, int]:
  """Of T5, and of seqio's vocabularies."""
  return {
    'pad_token_id': 0,
    'eos_token_id': 1,
    'decoder_start_token_id': 0,
  }


def tensors_of(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """transformers' tensors of a model's unrolled parameters, float32."""
  result = {}
  for name, value in values.items():
    theirs, transposed = name_of(name)
    value = np.asarray(value, np.float32)
    result[theirs] = np.ascontiguousarray(value.T if transposed else value)
  return result


def write(
  folder: pathlib.Path,
  config: network.T5Config,
  values: Mapping[str, np.ndarray],
) -> None:
  """Writes what transformers loads, into a folder that is there."""
  described = config_of(config)
  _write_json(folder / CONFIG, described)
  _write_json(folder / 'generation_config.json', _token_ids())
  if 'auto_map' in described:
    text = MODELING.read_text(encoding='utf-8')
    (folder / MODELING.name).write_text(text, encoding='utf-8')
  safetensors.numpy.save_file(
    tensors_of(values), folder / WEIGHTS, metadata={'format': 'pt'}
  )


def _write_json(path: pathlib.Path, content: dict) -> None:
  path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def open_folder(path: str, config: network.T5Config) -> source.Source:
  """Looks into a folder of transformers, and compares it with a model.

  Args:
    path: a local folder with config.json.
    config: the model it should be.

  Raises:
    errors.UserError: there is none, its files are damaged, or config.json
      describes another function.
  """
  folder = pathlib.Path(path).expanduser().absolute()
  theirs = _read_config(path, folder)
  shapes, read = _weights(folder)
  _check_function(folder, theirs, config)
  names = _ours(shapes, config)
  return source.Source(
    where=str(folder),
    step=0,
    shapes={
      ours: shapes[name][::-1] if transposed else shapes[name]
      for name, (ours, transposed) in names.items()
    },
    read=lambda: _renamed(read(), names),
  )


def _read_config(path: str, folder: pathlib.Path) -> dict:
  if '://' in path or not (folder / CONFIG).is_file():
    raise errors.UserError(
      f'{path} holds no {CONFIG}: give a local folder as transformers saves '
      'it, for example by huggingface-cli download NAME --local-dir FOLDER.'
    )
  try:
    content = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
  except ValueError as error:
    raise errors.UserError(f'{folder / CONFIG} is no JSON: {error}') from error
  if not isinstance(content, dict) or 'd_model' not in content:
    raise errors.UserError(f'{folder / CONFIG} does not describe a T5.')
  return content


def _check_function(
  folder: pathlib.Path, theirs: dict, config: network.T5Config
) -> None:
  """Compares what the shapes of tensors do not tell."""
  ours = config_of(config)
  absent = {'feed_forward_proj': 'relu', 'tie_word_embeddings': True, **_FIXED}
  lines = []
  for key in ('num_heads', 'd_kv', 'feed_forward_proj', 'activation', *_FIXED):
    have, need = theirs.get(key, absent.get(key)), ours.get(key)
    if key == 'feed_forward_proj':
      # Two names of the same function.
      have = {'gelu_pytorch_tanh': 'gelu_new', 'swish': 'silu'}.get(have, have)
      have = {'gated-gelu_new': 'gated-gelu', 'gated-swish': 'gated-silu'}.get(
        have, have
      )
    if have != need:
      lines.append(f'  {key}: {have!r} there, {need!r} in this model')
  scales = theirs.get('scale_decoder_outputs')
  if scales is None:
    scales = theirs.get('tie_word_embeddings', True)
  if bool(scales) != config.logits_via_embedding:
    lines.append(
      f'  its logits are {"" if scales else "not "}those of the token table '
      '(tie_word_embeddings), this model has logits_via_embedding='
      f'{config.logits_via_embedding}'
    )
  if lines:
    raise errors.UserError(
      f'{folder} is another model:\n'
      + '\n'.join(lines)
      + '\nGive the model and variant files that describe it.'
    )


def _ours(
  shapes: Mapping[str, source.Shape], config: network.T5Config
) -> dict[str, tuple[str, bool]]:
  """Our name of each of their tensors; theirs where there is none."""
  blocks = range(max(config.num_encoder_layers, config.num_decoder_layers))
  mlp = ('wi', 'wi_0', 'wi_1', 'wo')
  known = [
    'token_embedder/embedding',
    'decoder/logits_dense/kernel',
    *(f'{s}/relpos_bias/rel_embedding' for s in _SUBLAYERS),
    *(f'{s}/{s}_norm/scale' for s in _SUBLAYERS),
  ]
  for stack, sublayers in _SUBLAYERS.items():
    norms = ['pre_mlp_layer_norm']
    norms += (
      ['pre_attention_layer_norm']
      if stack == 'encoder'
      else ['pre_self_attention_layer_norm', 'pre_cross_attention_layer_norm']
    )
    inside = [f'{norm}/scale' for norm in norms]
    inside += [
      f'{part}/{kernel}/kernel'
      for part in sublayers
      for kernel in (mlp if part == 'mlp' else _ATTENTION)
    ]
    inside += [f'mlp/activation/{c}' for c in config.activation.init()]
    known += [f'{stack}/layers_{i}/{what}' for i in blocks for what in inside]
  table = {}
  for ours in known:
    theirs, transposed = name_of(ours)
    table[theirs] = ours, transposed
  skip = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  if config.logits_via_embedding:
    skip.add('lm_head.weight')  # The table once more.
  return {
    name: table.get(name, (name, False)) for name in shapes if name not in skip
  }


def _renamed(tensors: Mapping, names: Mapping) -> dict[str, np.ndarray]:
  return {
    ours: tensors[name].T if transposed else tensors[name]
    for name, (ours, transposed) in names.items()
  }


def _weights(folder: pathlib.Path):
  """Shapes of the tensors by name, and a function that reads them."""
  index = folder / f'{WEIGHTS}.index.json'
  if (folder / WEIGHTS).is_file():
    files = [folder / WEIGHTS]
  elif index.is_file():
    content = json.loads(index.read_text(encoding='utf-8'))
    files = sorted({folder / name for name in content['weight_map'].values()})
  elif (folder / 'pytorch_model.bin').is_file():
    return _torch_weights(folder / 'pytorch_model.bin')
  else:
    raise errors.UserError(
      f'{folder} holds no weights: neither {WEIGHTS}, {index.name} nor '
      'pytorch_model.bin.'
    )
  shapes = {}
  for file in files:
    with _opened(file) as content:
      for name in content.keys():
        shapes[name] = tuple(content.get_slice(name).get_shape())

  def read():
    tensors = {}
    for file in files:
      with _opened(file) as content:
        for name in content.keys():
          tensors[name] = np.asarray(content.get_tensor(name), np.float32)
    return tensors

  return shapes, read


def _opened(file: pathlib.Path):
  try:
    return safetensors.safe_open(file, framework='numpy')
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f'{file} is missing, truncated or no safetensors file: {error}'
    ) from error


def _torch_weights(file: pathlib.Path):
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f'{file} is read by torch, which is not installed: pip install '
      "'t5x-variants[hf]', or save the model as safetensors."
    ) from error
  try:
    tensors = torch.load(file, map_location='cpu', weights_only=True)
  except Exception as error:
    # Which exception a damaged file ends in depends on the file.
    raise errors.UserError(
      f'{file} is truncated or holds no weights: {type(error).__name__}.'
    ) from error
  return (
    {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    lambda: {name: t.float().numpy() for name, t in tensors.items()},
  )
