"""The text of a compiled program (`compiled.as_text()`), read.

XLA offers its cost analysis by operation and by program, but no list of
instructions with their types.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_BITS = {'pred': 8, 'bf16': 16}
_ARRAY = re.compile(
  r'\b([a-z]+[0-9]*)(?:e[0-9]+m[0-9]+\w*)?\[([0-9,]*)\](\{[^}]*\})?'
)
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')


class Instruction(NamedTuple):
  """One instruction.

  Attributes:
    kind: the type of its result, with the layout.
    operation: what it does, such as 'all-gather-start'.
    rest: what follows: its operands and attributes.
  """

  kind: str
  operation: str
  rest: str

  def operands(self) -> list[str]:
    """Names of the instructions whose results it takes."""
    inside = re.split(r'\)(?:, |$)', self.rest)[0]
    return re.findall(r'%([\w.\-]+)', inside)


Computation = Mapping[str, Instruction]


def computations(text: str) -> tuple[Mapping[str, Computation], str]:
  """Instructions by name, by computation; and the entry's name."""
  found: dict[str, dict[str, Instruction]] = {}
  entry = table = None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      table = found.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif table is not None and (body := _LINE.match(line)):
      table[body[1]] = Instruction(*body.groups()[1:])
  if entry is None:
    raise ValueError(f'no program: {text[:80]!r}')
  return found, entry


def array_bytes(kind: str, in_hbm: bool = False) -> int:
  """Bytes of the arrays in a type.

  Args:
    kind: an array's type, or that of a tuple of arrays.
    in_hbm: whether arrays in another memory (VMEM, say) are left out.
  """
  total = 0
  for dtype, sizes, layout in _ARRAY.findall(kind):
    if in_hbm and 'S(' in layout:
      continue
    digits = re.search(r'\d+$', dtype)
    bits = _BITS.get(dtype) or (int(digits[0]) if digits else 0)
    total += bits * math.prod(int(n) for n in sizes.split(',') if n)
  return total // 8
