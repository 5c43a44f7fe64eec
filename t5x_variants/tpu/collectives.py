"""Bytes that a compiled program moves between devices, from its HLO text.

A collective counts the size of the tensor it is about on one device: what an
all-gather gives, what a reduce-scatter takes, what an all-reduce, an all-to-all
or a permutation takes and gives. How many bytes cross a link for that is the
business of the slice. A loop's body counts as often as its condition says;
scanned layers are such loops.
"""

import collections
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from t5x_variants.tpu import hlo

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'\bcondition=%?([\w.\-]+)')
_CALLS = re.compile(
  r'\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


class Moved(NamedTuple):
  """What a program moves.

  Attributes:
    bytes: by kind of collective, on one device.
    unknown_loops: loops whose trips the compiler does not say: their bodies
      count once.
  """

  bytes: Mapping[str, int]
  unknown_loops: int


def moved(text: str) -> Moved:
  """Reads the text of a compiled program (`compiled.as_text()`)."""
  computations, entry = hlo.computations(text)
  total: collections.Counter[str] = collections.Counter()
  unknown = 0
  stack = [(entry, 1)]
  while stack:
    name, times = stack.pop()
    table = computations[name]
    for one in table.values():
      operation = one.operation.removesuffix('-start')
      if operation in KINDS:
        total[operation] += times * _size(one, table)
        continue  # What an all-reduce applies moves nothing.
      trips = 1
      if operation == 'while':
        found = _trips(one, table, computations)
        trips = 1 if found is None else found
        unknown += found is None
      stack += [(inner, times * trips) for inner in _called(one.rest)]
  return Moved({kind: total[kind] for kind in KINDS if total[kind]}, unknown)


def _trips(loop: hlo.Instruction, table, computations) -> int | None:
  """How often a loop's body runs; None where the text does not say.

  A scan counts from a constant up to another: what its condition compares.
  """
  if said := _TRIPS.search(loop.rest):
    return int(said[1])
  condition = computations[_CONDITION.findall(loop.rest)[0]]
  for one in condition.values():
    if one.operation != 'compare' or 'direction=LT' not in one.rest:
      continue
    counter, end = (condition[n] for n in one.operands())
    place = re.search(r'index=(\d+)', counter.rest)
    if (bound := _constant(end)) is None or place is None:
      continue
    start = table[loop.operands()[0]].operands()[int(place[1])]
    return bound - (_constant(table[start]) or 0)
  return None


def _constant(one: hlo.Instruction) -> int | None:
  digits = re.match(r'(-?\d+)\)', one.rest)
  return int(digits[1]) if one.operation == 'constant' and digits else None


def _called(rest: str) -> Iterator[str]:
  """The computations that an instruction runs."""
  yield from _CALLS.findall(rest)
  for names in _BRANCHES.findall(rest):
    yield from re.findall(r'[\w.\-]+', names)


def _size(one: hlo.Instruction, table) -> int:
  """Bytes of the tensor that a collective is about."""
  taken = sum(hlo.array_bytes(table[name].kind) for name in one.operands())
  if not one.operation.endswith('-start'):
    return max(taken, hlo.array_bytes(one.kind))
  # Its type is a tuple of operands, results and flags; one kind starts with
  # nothing but its results.
  given = hlo.array_bytes(re.sub(r'\bu32\[\]', '', one.kind))
  given = given - taken if given > taken else given
  return max(taken, given)
