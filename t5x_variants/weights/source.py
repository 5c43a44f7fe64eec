"""Weights that lie somewhere: names and shapes first, values when asked for.

Whatever a checkpoint's own form, parameters go by the names of an unrolled
model of ours, `encoder/layers_0/mlp/wi_0/kernel`: a scanned model's
`encoder/layers/mlp/wi_0/kernel` with a leading axis of layers is cut into
them by `unrolled` and put together again by `leaf`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Shape = tuple[int, ...]
_STACKED = re.compile(r'(encoder|decoder)/layers/(.+)')


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that was found, of which no value was read yet.

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


def unrolled(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Cuts stacks of layers apart; anything that has a shape and indices."""
  result = {}
  for name, value in flat.items():
    found = _STACKED.fullmatch(name)
    if found and value.shape:
      for index, layer in enumerate(value):
        result[f'{found[1]}/layers_{index}/{found[2]}'] = layer
    else:
      result[name] = value
  return result


def unrolled_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
  """`unrolled` for shapes alone."""
  # One number seen through each shape: cutting it costs no memory.
  views = {k: np.broadcast_to(np.int8(0), v) for k, v in shapes.items()}
  return {k: v.shape for k, v in unrolled(views).items()}


def layer_names(name: str, shape: Shape) -> list[str]:
  """The unrolled names that a model's parameter is made of."""
  found = _STACKED.fullmatch(name)
  if not found:
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
