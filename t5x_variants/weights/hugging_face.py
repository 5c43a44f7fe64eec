"""Folders of Hugging Face transformers: written, and read.

See `hf_config` for config.json, `hf_names` for the names of the tensors and
`hf_tensors` for the files that are read. What is written is one safetensors
file, in float32.
"""

import json
import logging
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from t5x_variants import errors
from t5x_variants.model import network
from t5x_variants.weights import (
  files,
  hf_config,
  hf_names,
  hf_tensors,
  kinds,
  source,
)

CONFIG = 'config.json'
_HEAD, _TABLE = 'lm_head.weight', 'shared.weight'
# In the first T5 checkpoints; no code has ever read it.
_UNUSED = {
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
}
_log = logging.getLogger('t5x_variants')


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
  """Writes what transformers loads, into a folder that is there.

  Raises:
    errors.UserError: transformers cannot express the block.
    OSError: the folder cannot be written.
  """
  described = hf_config.config_of(config)
  _write_json(folder / CONFIG, described)
  _write_json(folder / 'generation_config.json', hf_config.TOKEN_IDS)
  if 'auto_map' in described:
    text = hf_config.MODELING.read_text(encoding='utf-8')
    (folder / hf_config.MODELING.name).write_text(text, encoding='utf-8')
  try:
    safetensors.numpy.save_file(
      tensors_of(values), folder / hf_tensors.WEIGHTS, metadata={'format': 'pt'}
    )
  except safetensors.SafetensorError as error:
    # What it makes of the file system's errors.
    raise OSError(str(error)) from error


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
  theirs = files.plain_file(folder, CONFIG)
  if theirs is None:
    raise kinds.missing(path, kinds.HUGGING_FACE)
  described = files.read_json(theirs)
  hf_config.check(folder, described, config)
  shapes, read = hf_tensors.open_tensors(folder)
  table = {name: hf_names.name_of(name) for name in names}
  copies = {f'{stack}.embed_tokens.weight' for stack in ('encoder', 'decoder')}
  if config.logits_via_embedding:
    copies.add(_HEAD)
  elif _HEAD not in shapes and hf_config.ties_unscaled_logits(described):
    _log.info(
      '%s uses its token table as output matrix too; here they are two '
      'matrices, equal at first, which training changes apart.',
      folder,
    )
    table[hf_names.HEAD] = _TABLE, True
  copies &= shapes.keys()
  found = _found(folder, shapes, table, copies)
  return source.Source(
    where=str(folder),
    step=0,
    shapes={
      name: shapes[theirs][::-1] if transposed else shapes[theirs]
      for name, (theirs, transposed) in found.items()
    },
    read=lambda: _renamed(folder, read(), found, copies),
  )


def _found(
  folder: pathlib.Path, shapes: Mapping, table: Mapping, copies: set[str]
) -> dict[str, tuple[str, bool]]:
  """Their name of each parameter that is there; those that are not ours too."""
  found = {name: pair for name, pair in table.items() if pair[0] in shapes}
  ignored = {theirs for theirs, _ in table.values()} | copies | _UNUSED
  for name in shapes.keys() - ignored:
    if name in table:
      raise errors.UserError(
        f'The folder {folder} is damaged: it has a tensor of the name {name}, '
        'which is no name that transformers gives.'
      )
    found[name] = name, False
  return found


def _renamed(
  folder: pathlib.Path, tensors: Mapping, found: Mapping, copies: set[str]
) -> dict[str, np.ndarray]:
  for name in sorted(copies):
    if not np.array_equal(tensors[name], tensors[_TABLE]):
      raise errors.UserError(
        f'The tensor {name} of {folder} differs from {_TABLE}, and this model '
        'has one matrix for both.'
      )
  return {
    name: tensors[theirs].T if transposed else tensors[theirs]
    for name, (theirs, transposed) in found.items()
  }
