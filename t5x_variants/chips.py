"""TPU generations: one row each, for kernels, figures and names of slices.

A new generation is a new row.
"""

import dataclasses

GIB, MIB = 2**30, 2**20
# Chips along each axis, of slices as they are rented.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU generation.

  Attributes:
    name: as in the names of slices.
    kinds: what JAX calls its devices (`device_kind`).
    peak: bfloat16 FLOP/s of a chip.
    hbm: bytes of a chip, as the vendor gives them.
    bandwidth: HBM bytes a second of a chip.
    devices: how many JAX devices a chip is.
    usable: HBM bytes of a device that the compiler lets a program have.
    vmem: bytes of VMEM of a core.
    cores: of a device.
    rows: tokens of a kernel's tile.
    width: columns of F in a kernel's block.
    registers: whether a chunk of a kernel must fit the registers.
    compiler: its name for the TPU compiler.
    counted: TensorCores or chips that a chip counts in a slice's number.
    shapes: chips along each axis of the slices there are.
    aliases: other names for the generation.
  """

  name: str
  kinds: tuple[str, ...]
  peak: float
  hbm: int
  bandwidth: float
  devices: int
  usable: int
  vmem: int
  cores: int
  rows: int
  width: int
  compiler: str
  counted: int
  shapes: tuple[str, ...]
  aliases: tuple[str, ...] = ()
  registers: bool = True

  @property
  def device_peak(self) -> float:
    """bfloat16 FLOP/s of a JAX device: what `flops.mfu` divides by."""
    return self.peak / self.devices


# cloud.google.com/tpu/docs: v4, v5e, v5p, v6e and tpu7x, 'peak compute per chip
# (bf16)', 'HBM capacity' and 'HBM bandwidth'. `usable` is what libtpu 0.0.42
# says of a program that is too large: 'exceeds available HBM (15.75G)'.
GENERATIONS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      kinds=('TPU v4',),
      peak=275e12,
      hbm=32 * GIB,
      bandwidth=1228e9,
      devices=1,
      usable=int(30.75 * GIB),
      vmem=16 * MIB,
      cores=2,
      rows=256,
      width=256,
      compiler='v4',
      counted=2,
      shapes=_CUBES,
    ),
    Chip(
      name='v5e',
      kinds=('TPU v5 lite', 'TPU v5e'),
      peak=197e12,
      hbm=16 * GIB,
      bandwidth=819e9,
      devices=1,
      usable=int(15.75 * GIB),
      vmem=128 * MIB,
      cores=1,
      rows=256,
      width=256,
      compiler='v5e',
      counted=1,
      shapes=_FLAT,
      aliases=('v5litepod', 'v5lite'),
    ),
    Chip(
      name='v5p',
      kinds=('TPU v5', 'TPU v5p'),
      peak=459e12,
      hbm=95 * GIB,
      bandwidth=2765e9,
      devices=1,
      usable=int(95.74 * GIB),
      vmem=64 * MIB,
      cores=2,
      rows=256,
      width=256,
      compiler='v5p',
      counted=2,
      shapes=_CUBES,
      aliases=('v5',),
    ),
    Chip(
      name='v6e',
      kinds=('TPU v6 lite', 'TPU v6e'),
      peak=918e12,
      hbm=32 * GIB,
      bandwidth=1638e9,
      devices=1,
      usable=int(31.25 * GIB),
      vmem=128 * MIB,
      cores=1,
      rows=512,
      width=512,
      compiler='v6e',
      counted=1,
      shapes=_FLAT,
    ),
    Chip(
      name='7x',
      kinds=('TPU7x',),
      peak=2307e12,
      hbm=192 * GIB,
      bandwidth=7380e9,
      devices=2,
      usable=int(94.75 * GIB),
      vmem=64 * MIB,
      cores=1,
      rows=512,
      width=256,
      compiler='tpu7x',
      counted=2,
      shapes=_CUBES,
      aliases=('tpu7x', 'v7x'),
    ),
  )
}
# By the name that JAX gives the device.
CHIPS = {kind: chip for chip in GENERATIONS.values() for kind in chip.kinds}
