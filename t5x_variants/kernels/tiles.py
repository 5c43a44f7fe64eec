"""How the TPU kernels cut the block, and how much VMEM that takes.

A kernel walks over tiles of `rows` tokens, with all weights (and in the
backward pass all float32 weight gradients) resident in VMEM. Inside a tile
F is cut into blocks of `width` (the last may be narrower), and each of these
into chunks of
`chunk` = (rows, lanes) for the elementwise work, small enough that a chunk's
intermediates stay in registers. A row-wise activation needs whole rows: one
block, and chunks of 16 rows.

Where weights and gradients do not fit, F is split into `parts`, each a kernel
of its own that adds its share to the float32 y or dx of the parts before it.
"""

import dataclasses
import functools

import jax.numpy as jnp

from t5x_variants import chips, errors

LANES = 128
SUBLANES = 16  # of a bfloat16 tile


# Interpreted, nothing is short: the fewer pieces, the quicker it is and the
# nearer to XLA's rounding.
INTERPRETED = dataclasses.replace(
  chips.GENERATIONS['v5e'],
  name='interpreted',
  vmem=2**40,
  rows=4096,
  width=2**40,
  registers=False,
)


@dataclasses.dataclass(frozen=True)
class Tiles:
  """One way to cut one block.

  Attributes:
    rows: tokens of a tile.
    width: columns of F in a block; the last block may be narrower.
    chunk: (rows, lanes) of a chunk; its lanes divide width and F.
    cores: into how many independent parts the tokens are split.
    vmem: bytes the kernel is allowed.
    parts: kernels that F is split over, one after another.
  """

  rows: int
  width: int
  chunk: tuple[int, int]
  cores: int
  vmem: int
  parts: int = 1


def round_up(size: int, unit: int) -> int:
  """The next multiple of `unit`."""
  return -(-size // unit) * unit


def vmem_bytes(
  rows: int,
  width: int,
  d: int,
  f: int,
  gated: bool,
  save: str,
  item: int,
  parts: int = 1,
) -> int:
  """VMEM of the backward kernel, which needs more than the forward one.

  Args:
    rows: tokens of a tile.
    width: columns of F in a block.
    d: D, `emb_dim`.
    f: F of one part.
    gated: whether there are two input matrices.
    save: 'inputs' or 'preactivations'.
    item: bytes of an element of x.
    parts: kernels that the whole F is split over.
  """
  matrices = (2 + gated) * d * f
  resident = matrices * (item + 4)
  # x, dy, dx, each in two buffers; dx's sum in float32.
  moving = rows * d * (6 * item + 4)
  if parts > 1:
    # dx in float32, and the sum of the parts before.
    moving += rows * d * (2 * (4 - item) + 2 * 4)
  if save == 'preactivations':
    moving += 2 * rows * f * (1 + gated) * item
  # z, u, dh in float32; h, dz, du; two slots of each where F is cut.
  slots = 1 if width == f else 2
  scratch = slots * rows * width * (2 + gated) * (4 + item)
  if save == 'preactivations' and slots == 1:
    # Chunks of whole rows are too long for the registers: the compiler keeps
    # float32 copies of what they read. (D = 1,024, F = 4,224 ran out by them.)
    scratch += 4 * rows * f * 4
  # The compiler's own: spilled registers, transposed operands; and with stored
  # pre-activations the products of two blocks and two weights on their way into
  # the gradients' sums. (D = 2,048, F = 3,840 ran out by them.)
  explicit = resident + moving + scratch
  own = 0.1 * explicit
  if save == 'preactivations' and slots == 2:
    own = max(own, 4 * width * d * 4)
  return int(explicit + own) + 4 * chips.MIB


def choose(
  tokens: int,
  d: int,
  f: int,
  dtype,
  *,
  gated: bool,
  rowwise: bool,
  save: str,
  chip: chips.Chip,
) -> Tiles:
  """The fewest parts and the largest tiles that fit.

  Args:
    tokens: M, on one device.
    d: D, a multiple of 128.
    f: F on one device, a multiple of 128.
    dtype: of x.
    gated: whether there are two input matrices.
    rowwise: whether the activation needs whole rows of F.
    save: 'inputs' or 'preactivations'.
    chip: the TPU generation.

  Raises:
    errors.UserError: not even small tiles fit; says what would.
  """
  item = jnp.dtype(dtype).itemsize
  rows = chip.rows
  while rows > 64 and rows >= 2 * -(-tokens // chip.cores):
    rows //= 2
  rows = min(rows, round_up(tokens, SUBLANES))

  def width_of(f):
    return f if rowwise else min(chip.width, f)

  def bytes_of(rows, f, parts=1):
    return vmem_bytes(rows, width_of(f), d, f, gated, save, item, parts)

  for parts in [1] if rowwise else _divisors(f // LANES):
    part = f // parts
    for fitting in _halvings(rows):
      needed = bytes_of(fitting, part, parts)
      if needed <= chip.vmem:
        width = width_of(part)
        chunk = _chunk(fitting, width, rowwise, chip)
        return Tiles(fitting, width, chunk, chip.cores, needed, parts)
  least = functools.partial(bytes_of, _halvings(rows)[-1])
  raise errors.UserError(_too_small(least, d, f, chip))


def _halvings(rows: int) -> list[int]:
  found = [rows]
  while found[-1] > 64:
    found.append(round_up(found[-1] // 2, SUBLANES))
  return found


def _chunk(
  rows: int, width: int, rowwise: bool, chip: chips.Chip
) -> tuple[int, int]:
  if not chip.registers:
    return rows, width
  if rowwise:
    return min(rows, 16), width
  # Up to 64 rows of 128 lanes: eight registers.
  return next(n for n in (64, 48, 32, 16) if rows % n == 0), LANES


def _divisors(n: int) -> list[int]:
  return [ways for ways in range(1, n + 1) if n % ways == 0]


def _too_small(least, d, f, chip) -> str:
  fits = [
    ways for ways in _divisors(f // LANES)[1:] if least(f // ways) <= chip.vmem
  ]
  remedy = (
    f'shard the width over a `model` axis of {fits[0]} or more (F '
    f'{f // fits[0]} each)'
    if fits
    else 'no sharding of the width is enough'
  )
  return (
    f'A block of D = {d} and F = {f} needs {least(f) / chips.MIB:.0f} MiB '
    'of VMEM with its weights and float32 gradients resident, but a '
    f'{chip.name} core has {chip.vmem / chips.MIB:.0f}: {remedy}, or take '
    "implementation 'xla'."
  )
