"""Folders of Hugging Face transformers: written, and read.

See `hf_names` for the tensors and `hf_config` for config.json. The weights
are one safetensors file, in float32; read are also several of them with an
index, and pytorch_model.bin where torch is installed.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from t5x_variants import errors, network
from t5x_variants.weights import hf_config, hf_names, source

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
# Other names of the same function.
_SAME = {
  'gelu_pytorch_tanh': 'gelu_new',
  'swish': 'silu',
  'gated-gelu_new': 'gated-gelu',
  'gated-gelu_pytorch_tanh': 'gated-gelu',
  'gated-swish': 'gated-silu',
}


def tensors_of(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Their tensors of a model's unrolled parameters, float32."""
  result = {}
  for name, value in values.items():
    theirs, transposed = hf_names.name_of(name)
    value = np.asarray(value, np.float32)
    result[theirs] = np.ascontiguousarray(value.T if transposed else value)
  return result


def write(
  folder: pathlib.Path,
  config: network.T5Config,
  values: Mapping[str, np.ndarray],
) -> None:
  """Writes what transformers loads, into a folder that is there."""
  described = hf_config.config_of(config)
  _write_json(folder / CONFIG, described)
  _write_json(folder / 'generation_config.json', hf_config.TOKEN_IDS)
  if 'auto_map' in described:
    text = hf_config.MODELING.read_text(encoding='utf-8')
    (folder / hf_config.MODELING.name).write_text(text, encoding='utf-8')
  safetensors.numpy.save_file(
    tensors_of(values), folder / WEIGHTS, metadata={'format': 'pt'}
  )


def _write_json(path: pathlib.Path, content: dict) -> None:
  path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def open_folder(
  path: str, config: network.T5Config, names: Iterable[str]
) -> source.Source:
  """Looks into a folder of transformers, and compares it with a model.

  Args:
    path: a local folder with config.json.
    config: the model it should be.
    names: that model's unrolled parameters.

  Raises:
    errors.UserError: there is none, its files are damaged, or config.json
      describes another function.
  """
  folder = pathlib.Path(path).expanduser().absolute()
  theirs = _read_config(path, folder)
  shapes, read = _weights(folder)
  _check_function(folder, theirs, config)
  names = _ours(shapes, names, config)
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
  ours = hf_config.config_of(config)
  absent = {'feed_forward_proj': 'relu'} | hf_config.FIXED
  keys = ('num_heads', 'd_kv', 'feed_forward_proj', 'activation')
  lines = []
  for key in (*keys, *hf_config.FIXED):
    have, need = theirs.get(key, absent.get(key)), ours.get(key)
    if key == 'feed_forward_proj':
      have = _SAME.get(have, have)
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
  shapes: Mapping[str, source.Shape],
  names: Iterable[str],
  config: network.T5Config,
) -> dict[str, tuple[str, bool]]:
  """Our name of each of their tensors; theirs where we have none."""
  table = {}
  for ours in names:
    theirs, transposed = hf_names.name_of(ours)
    table[theirs] = ours, transposed
  # The token table once more.
  skip = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  if config.logits_via_embedding:
    skip.add('lm_head.weight')
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
