"""The tensors of a folder of transformers: shapes first, values when asked for.

Read are model.safetensors, several safetensors files with an index, and
pytorch_model.bin where torch is installed, in this order.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import safetensors

from t5x_variants import errors
from t5x_variants.weights import files, source

WEIGHTS = 'model.safetensors'
_INDEX = f'{WEIGHTS}.index.json'
_TORCH = 'pytorch_model.bin'
_DTYPES = ('F64', 'F32', 'F16', 'BF16')

Tensors = Mapping[str, np.ndarray]


def open_tensors(
  folder: pathlib.Path,
) -> tuple[dict[str, source.Shape], Callable[[], Tensors]]:
  """The shapes of a folder's tensors by name, and a function that reads them.

  Raises:
    errors.UserError: there are none, or a file is damaged, is missing, leads
      out of the folder or holds something else than floating-point numbers.
  """
  single = files.plain_file(folder, WEIGHTS)
  index = files.plain_file(folder, _INDEX)
  found = [single] if single else _indexed(folder, index) if index else None
  if found is not None:
    shapes = {}
    for file in found:
      for name, shape in _header(file).items():
        if name in shapes:
          raise errors.UserError(
            f'The folder {folder} holds the tensor {files.short(name)} in more '
            'than one file; copy it again.'
          )
        shapes[name] = shape
    return shapes, lambda: {k: v for f in found for k, v in _values(f).items()}
  pickled = files.plain_file(folder, _TORCH)
  if pickled:
    return _torch_tensors(pickled)
  raise errors.UserError(
    f'The folder {folder} holds no weights: neither {WEIGHTS}, {_INDEX} nor '
    f'{_TORCH}.'
  )


def _indexed(folder: pathlib.Path, index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index names."""
  named = files.read_json(index).get('weight_map')
  if not isinstance(named, dict) or not all(
    isinstance(name, str) for name in named.values()
  ):
    raise errors.UserError(
      f'The file {index} has no weight_map that gives each tensor the name of '
      f'a file: it is {files.short(named)}.'
    )
  found = []
  for name in sorted(set(named.values())):
    file = files.plain_file(folder, name)
    if file is None:
      raise errors.UserError(
        f'The folder {folder} holds no file {files.short(name)}, which '
        f'{_INDEX} names; copy it again.'
      )
    found.append(file)
  return found


def _header(file: pathlib.Path) -> dict[str, source.Shape]:
  shapes = {}
  with _opened(file) as content:
    names = content.keys()
    for name in names:
      tensor = content.get_slice(name)
      if tensor.get_dtype() not in _DTYPES:
        raise errors.UserError(
          f'The tensor {files.short(name)} of {file} is of dtype '
          f'{tensor.get_dtype()}; those that can be read are '
          f'{", ".join(_DTYPES)}, and no quantized ones.'
        )
      shapes[name] = tuple(tensor.get_shape())
  return shapes


def _values(file: pathlib.Path) -> Tensors:
  with _opened(file) as content:
    names = content.keys()
    return {name: content.get_tensor(name) for name in names}


@contextlib.contextmanager
def _opened(file: pathlib.Path):
  try:
    with safetensors.safe_open(file, framework='numpy') as content:
      yield content
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f'The file {file} is truncated or is not a safetensors file: '
      f'{errors.reason(error)}.'
    ) from error


def _torch_tensors(file: pathlib.Path):
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f'The file {file} is read by torch, which is not installed: pip install '
      "'t5x-variants[hf]', or save the model as safetensors."
    ) from error
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      tensors = torch.load(file, map_location='cpu', weights_only=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    if not {tensor.dtype for tensor in tensors.values()} <= known:
      raise TypeError
    if not all(tensor.layout == torch.strided for tensor in tensors.values()):
      raise TypeError
  except Exception as error:
    # Which exception a damaged file ends in depends on the file. Its text is
    # left out: torch's advises to run what is in the file.
    raise errors.UserError(
      f'The file {file} is truncated or holds something else than '
      f'floating-point tensors ({type(error).__name__}).'
    ) from error
  return shapes, lambda: {k: v.float().numpy() for k, v in tensors.items()}
