"""A checkpoint's weights: names and shapes first, values when asked for.

Whatever a checkpoint's own form, parameters go by the names of an unrolled
model of ours, `encoder/layers_0/mlp/wi_0/kernel`: a scanned model's
`encoder/layers/mlp/wi_0/kernel` with a leading axis of layers is cut into
them by `unrolled` and put together again by `leaf`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from t5x_variants import errors
from t5x_variants.weights import files

Shape = tuple[int, ...]
_STACKED = re.compile(r'(encoder|decoder)/layers/(.+)')
_NAME = re.compile(r'[!-~]{1,200}')
# Far beyond any T5; what claims more is damaged, and would exhaust memory.
_MAX_LAYERS, _MAX_SIZE = 1000, 2**40
_DTYPES = ('float64', 'float32', 'float16', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that was found, of which no value was read yet.

  Names and shapes are checked when it is made, because they are what a file
  says: a `UserError` names one that no model can have, and a step that is no
  int32.

  Attributes:
    where: what to call it in a message.
    step: the step it was written at; 0 where that is not known.
    shapes: every parameter by name, scanned or unrolled.
    read: reads the values, by the same names; a UserError when a file is
      damaged.
    variant: the name of its feed-forward block, as `saved.variant_of` gives it;
      None where that is not known.
  """

  where: str
  step: int
  shapes: Mapping[str, Shape]
  read: Callable[[], Mapping[str, np.ndarray]]
  variant: str | None = None

  def __post_init__(self):
    if type(self.step) is not int or not 0 <= self.step < 2**31:
      raise errors.UserError(
        f'The checkpoint {self.where} is of step {files.short(self.step)}; a '
        'step is a whole number from 0 to 2147483647.'
      )
    for name, shape in self.shapes.items():
      if not _possible(name, shape):
        raise errors.UserError(
          f'The checkpoint {self.where} is damaged: it has a parameter of the '
          f'name {files.short(name)} and the shape {files.short(shape)}, which '
          'no model has.'
        )
    names = [n for k, v in self.shapes.items() for n in layer_names(k, v)]
    if len(names) > len(set(names)):
      raise errors.UserError(
        f'The checkpoint {self.where} is damaged: it has parameters both layer '
        'by layer and for all layers at once.'
      )

  def values(self) -> dict[str, np.ndarray]:
    """Every parameter, of an unrolled model, as float32.

    Raises:
      errors.UserError: a file is damaged, or holds something else than finite
        floating-point numbers of the shapes that were announced.
    """
    read = self.read()
    return unrolled({name: self._float32(name, read[name]) for name in read})

  def _float32(self, name: str, value: np.ndarray) -> np.ndarray:
    what = f'The parameter {name} of {self.where}'
    if value.dtype.name not in _DTYPES:
      raise errors.UserError(
        f'{what} is of dtype {value.dtype.name}; weights are float64, float32, '
        'float16 or bfloat16 (quantized ones cannot be read).'
      )
    if value.shape != self.shapes[name]:
      raise errors.UserError(
        f'{what} has the shape {list(value.shape)}, where the checkpoint says '
        f'{list(self.shapes[name])}; copy the checkpoint again.'
      )
    with np.errstate(over='ignore'):
      value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
      raise errors.UserError(
        f'{what} holds values that are not finite; take a checkpoint of an '
        'earlier step.'
      )
    return value


def _possible(name: Any, shape: Any) -> bool:
  return (
    isinstance(name, str)
    and _NAME.fullmatch(name) is not None
    and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in shape)
    and math.prod(shape) <= _MAX_SIZE
    and not (_STACKED.fullmatch(name) and shape and shape[0] > _MAX_LAYERS)
  )


def flattened(tree: Any, where: str, is_leaf=None) -> dict[str, Any]:
  """The leaves of a checkpoint's nested parameters, by joined name.

  Args:
    tree: what the checkpoint holds.
    where: the checkpoint's name, for a message.
    is_leaf: as for `flax.traverse_util.flatten_dict`.

  Raises:
    errors.UserError: it is no tree of named parameters.
  """
  if isinstance(tree, Mapping):
    flat = traverse_util.flatten_dict(tree, is_leaf=is_leaf)
    wrong = [path for path in flat if not all(map(_is_part, path))]
    if not wrong:
      return {'/'.join(path): leaf for path, leaf in flat.items()}
    tree = wrong[0]
  raise errors.UserError(
    f'The checkpoint {where} is damaged: {files.short(tree)} is no name of a '
    'parameter.'
  )


def _is_part(key: Any) -> bool:
  """Whether a key can be a part of a name, or of a path."""
  return isinstance(key, str) and '/' not in key and key not in ('.', '..')


def unrolled(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Cuts stacks of layers apart; anything that has a shape and indices."""
  result: dict[str, Any] = {}
  for name, value in flat.items():
    names = layer_names(name, value.shape)
    layers = [value] if names == [name] else value
    result |= zip(names, layers, strict=True)
  return result


def unrolled_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
  """`unrolled` for shapes alone."""
  result: dict[str, Shape] = {}
  for name, shape in shapes.items():
    names = layer_names(name, shape)
    inner = shape if names == [name] else shape[1:]
    result |= dict.fromkeys(names, inner)
  return result


def layer_names(name: str, shape: Shape) -> list[str]:
  """The unrolled names that a model's parameter is made of."""
  found = _STACKED.fullmatch(name)
  if not found or not shape:
    return [name]
  return [f'{found[1]}/layers_{i}/{found[2]}' for i in range(shape[0])]


def leaf(
  unrolled_values: Mapping[str, np.ndarray], name: str, shape: Shape
) -> np.ndarray:
  """A model's parameter of that name and shape, from unrolled values."""
  names = layer_names(name, shape)
  if names == [name]:
    return unrolled_values[name]
  return np.stack([unrolled_values[n] for n in names])


def differences(
  found: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  of_what: str = 'model',
) -> list[str]:
  """What differs between the arrays of a checkpoint and others, in lines.

  Args:
    found: shapes by name, of the checkpoint.
    expected: shapes by name, of the model.
    of_what: what the expected ones are of, for the lines.

  Returns:
    A count, then the first few of them; [] when they are the same.
  """
  names = sorted(
    name
    for name in found.keys() | expected.keys()
    if found.get(name) != expected.get(name)
  )
  if not names:
    return []
  lines = [f'{len(names)} array(s) differ:']
  lines += [
    f'  {name}: {_shape_text(found.get(name))} in the checkpoint, '
    f'{_shape_text(expected.get(name))} in this {of_what}'
    for name in names[:5]
  ]
  if len(names) > 5:
    lines.append(f'  and {len(names) - 5} more')
  return lines


def _shape_text(shape: tuple[int, ...] | None) -> str:
  return 'absent' if shape is None else str(list(shape))
