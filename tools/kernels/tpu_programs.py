"""HBM bytes and modelled cycles of a program of the TPU compiler. Static.

Bytes: the operands and results, outside VMEM, of the entry computation's
instructions. A Pallas kernel reads each operand once.

Cycles: libtpu writes the instruction bundles of each fusion and kernel into a
folder. A bundle takes a cycle; one that feeds a matrix unit waits until the
unit is free of the bundle before (16 cycles on v5e, 8 on v6e). A loop's body
is walked twice, so that the second walk meets the units as the first left
them, and counts as often as its windows say. What a branch inside the body may
skip (the first or last step's work, mostly) is counted in the upper end of the
range and not in the lower. An instruction takes its cycles or its bytes at the
chip's bandwidth, whichever is more, and the instructions follow each other.

Nothing is run. Waiting for memory, latencies the compiler did not schedule for,
and clocks are not modelled: these figures rank programs and time none.
"""

import math
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

from t5x_variants.tpu import hlo

# What moves nothing, or is counted where the transfer is started.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}
FREE |= {'copy-done', 'slice-done', 'async-done', 'after-all', 'iota'}
STARTS = {'copy-start', 'slice-start', 'async-start'}

BUNDLE = re.compile(r'\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(?:>\s*)*\{')
MATMUL = re.compile(r'\bvmatmul\S*\.mxu(\d)')
BRANCH = re.compile(r'sbr\.rel .*?target = \$region(\d+)')
REGION = re.compile(r'Start(?:/End empty)? region (\d+)')
WINDOWS = re.compile(r'iteration_bounds: \(([\d, ]+)\)')
# A branch over less than this guards a transfer, which most steps start.
SMALL = 256


class Clock(NamedTuple):
  """What a cycle is on a chip.

  Attributes:
    hold: cycles that a bundle feeding a matrix unit holds it.
    bandwidth: HBM bytes a cycle.
    units: matrix units, as the bundles name them.
  """

  hold: int
  bandwidth: int
  units: int


CLOCKS = {'v5e': Clock(16, 547, 4), 'v6e': Clock(8, 937, 2)}


class Cost(NamedTuple):
  """A program's bytes; the ends of its cycles' range; the units' busy cycles.

  The last three are None where the chip has no clock.
  """

  bytes: int
  low: float | None
  high: float | None
  busy: float | None


def prepare(environment=os.environ) -> pathlib.Path:
  """Makes this process one that compiles for TPUs; before jax is imported.

  Returns:
    The folder that the compiler writes its bundles to.
  """
  folder = pathlib.Path(tempfile.mkdtemp(prefix='bundles'))
  environment.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    LIBTPU_INIT_ARGS=(
      f'--xla_jf_dump_to={folder} '
      '--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*'
    ),
  )
  return folder


def cost(text: str, folder: pathlib.Path, chip: str) -> Cost:
  """A compiled program's cost; empties the folder of its bundles."""
  clock = CLOCKS.get(chip)
  kernels = {}
  if clock:
    for path in sorted(folder.glob('*-final_bundles.txt')):
      name = re.fullmatch(r'\d+-(.*?)-\d+-(.*)final_bundles.txt', path.name)
      if name and not name[2] and name[1] != 'TLP' and '<' not in name[1]:
        kernels[name[1]] = bundle_cycles(path.read_text(), clock)
  shutil.rmtree(folder)
  folder.mkdir()
  moved = list(instruction_bytes(text))
  total = sum(size for *_, size in moved)
  if not clock:
    return Cost(total, None, None, None)
  low = high = busy = 0.0
  for name, operation, kind, size in moved:
    if operation in STARTS:
      continue
    found = kernels.get(name) or _alike(name, kind, kernels, moved)
    low += max(found[0], size / clock.bandwidth)
    high += max(found[1], size / clock.bandwidth)
    busy += found[2]
  return Cost(total, low, high, busy)


def _alike(name, kind, kernels, moved):
  """Equal fusions are compiled once: the cycles of one that is like this."""
  kinds = {n: k for n, _, k, _ in moved}
  stem = re.sub(r'[.\d]+$', '', name)
  for other, found in kernels.items():
    if re.sub(r'[.\d]+$', '', other) == stem and kinds.get(other) == kind:
      return found
  return (0.0, 0.0, 0.0)


def instruction_bytes(text: str):
  """Yields (name, operation, type, bytes) of the entry's instructions."""
  computations, entry = hlo.computations(text)
  table = computations[entry]
  for name, one in table.items():
    if one.operation in FREE:
      continue
    if one.operation == 'while':
      raise ValueError(f'a loop, whose trips are not counted: {one}')
    # copy-start has (destination, source, context): each moves its size.
    start = one.operation == 'copy-start'
    size = hlo.array_bytes(one.kind.split(', ')[0] if start else one.kind, True)
    size += sum(
      hlo.array_bytes(table[operand].kind, True)
      for operand in set(one.operands())
      if operand in table
    )
    yield name, one.operation, one.kind, size


def bundle_cycles(text: str, clock: Clock) -> tuple[float, float, float]:
  """Lower and upper cycles, and the matrix units' busy cycles (of each)."""
  bundles = []
  for line in text.splitlines():
    if BUNDLE.match(line):
      bundles.append(line)
    elif bundles:
      bundles[-1] += line
  feeds = [MATMUL.findall(bundle) for bundle in bundles]
  starts = {}
  for at, bundle in enumerate(bundles):
    for region in REGION.findall(bundle):
      starts.setdefault(region, at)
  loops, skipped = [], []
  for at, bundle in enumerate(bundles):
    for region in BRANCH.findall(bundle):
      target = starts.get(region, at)
      if target < at:
        loops.append((target, at + 1))
      elif target - at > SMALL:
        skipped.append((at + 1, target))
  windows = [
    math.prod(int(n) for n in found.split(','))
    for found in WINDOWS.findall(text)
  ]
  trips = max(windows, default=1)
  if not loops:
    every = _walk(feeds, clock.hold)
    return every, every, _busy(feeds, clock)
  if len(loops) > 1:
    raise ValueError(f'loops in a loop, of trips unknown: {loops}')
  begin, end = loops[0]
  # The region that holds most of the loop is its body, skipped only where the
  # pipeline fills and drains.
  skipped = [
    (a, b)
    for a, b in skipped
    if begin <= a and b <= end and b - a < (end - begin) / 2
  ]
  inside = range(begin, end)
  always = [i for i in inside if not any(a <= i < b for a, b in skipped)]
  low, high = (
    trips * _walk([feeds[i] for i in part], clock.hold)
    for part in (always, inside)
  )
  once = len(bundles) - len(always)
  busy = trips * _busy([feeds[i] for i in always], clock)
  return low + once, high + len(bundles) - (end - begin), busy


def _walk(feeds, hold: int) -> float:
  """Cycles of the second of two walks over the bundles."""
  time, free, ends = 0, {}, []
  for _ in range(2):
    for units in feeds:
      start = max([time, *(free.get(unit, 0) for unit in units)])
      free.update(dict.fromkeys(units, start + hold))
      time = start + 1
    ends.append(time)
  return ends[1] - ends[0]


def _busy(feeds, clock: Clock) -> float:
  return sum(map(len, feeds)) * clock.hold / clock.units
