"""The feed-forward block as two Pallas TPU kernels, for any activation.

Forward, for each tile of tokens and each block of F:

  z = x W    u = x V    h = act(z; c) * u    y += h Wo

Backward:

  dh = dy Wo'    dz, du, dc = pull-back of act(z; c) * u along dh
  dx += dz W' + du V'    dW += x' dz    dV += x' du    dWo += h' dy

The hidden activations never reach HBM. The activation is the table's own
function, differentiated by jax.vjp inside the kernel, on float32 tiles as the
matrix unit leaves them; h, dz and du are rounded once, to the dtype of x, for
the matmuls. Weight gradients are summed in float32, in output blocks that
every tile visits again.

Coefficients: each is a scalar, spread over a chunk as a (1, 8, lanes) array
that a chunk viewed as (rows / 8, 8, lanes) broadcasts with, so its cotangent
comes back as (1, 8, lanes): a few vector additions in place of a reduction to
a scalar. The 1,024 numbers left of each are summed outside.

Parts: a kernel may be one of several along F. It then takes the float32 sum of
those before it, and gives on its own y or dx in float32, or, as the last, in
the dtype of x.

Shapes: x, y [M, D]; W, V [D, F]; Wo [F, D]; coefficients [1, K] in the order
of their sorted names; z, u [M, F]. M is a multiple of the tile, D and F of
128.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5x_variants.kernels import tiles as tiling

_SUBLANES = 8
_NN = (((1,), (0,)), ((), ()))
_NT = (((1,), (1,)), ((), ()))
_TN = (((0,), (0,)), ((), ()))


class Spec(NamedTuple):
  """What a kernel is compiled for; hashable.

  Attributes:
    activation: a record of the activation table.
    gated: whether there is a linear branch.
    sizes: (name, length) of each coefficient vector, sorted by name.
    keep: whether z and u are handed from forward to backward.
    tiles: how the block is cut.
    interpret: False, or what pallas_call takes to interpret the kernel.
  """

  activation: Any
  gated: bool
  sizes: tuple[tuple[str, int], ...]
  keep: bool
  tiles: tiling.Tiles
  interpret: Any = False

  @property
  def num_coefficients(self) -> int:
    """The number of coefficients, K."""
    return sum(size for _, size in self.sizes)


def forward(spec: Spec, x, branches, wo, coefficients, before=(), dtype=None):
  """Returns y and, where they are kept, z (and u).

  Args:
    spec: what to compile.
    x: [M, D].
    branches: W (and V), [D, F].
    wo: [F, D].
    coefficients: [1, K], float32.
    before: one float32 array [M, D], the y of other parts of F, or none.
    dtype: of y; None is that of x.
  """
  (m, d), f, t = x.shape, wo.shape[0], spec.tiles
  tile = pl.BlockSpec((t.rows, d), lambda i: (i, 0))
  wide = pl.BlockSpec((t.rows, f), lambda i: (i, 0))
  kept = len(branches) if spec.keep else 0
  slots = _slots(t, f)
  z = pltpu.VMEM((slots, t.rows, t.width), jnp.float32)
  item = x.dtype.itemsize
  matrices = (1 + len(branches)) * d * f
  return pl.pallas_call(
    functools.partial(_forward_kernel, spec),
    grid=(m // t.rows,),
    in_specs=(
      tile,
      tuple(_resident(spec, w.shape) for w in branches),
      _resident(spec, wo.shape),
      (tile,) * len(before),
      *_scalars(spec),
    ),
    out_specs=(tile, (wide,) * kept),
    out_shape=(
      jax.ShapeDtypeStruct((m, d), dtype or x.dtype),
      (jax.ShapeDtypeStruct((m, f), x.dtype),) * kept,
    ),
    scratch_shapes=(
      pltpu.VMEM((t.rows, d), jnp.float32),
      (z,) * len(branches),
      pltpu.VMEM((slots, t.rows, t.width), x.dtype),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel',), vmem_limit_bytes=t.vmem
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * m * matrices,
      bytes_accessed=(2 * m * d + kept * m * f + matrices) * item
      + 4 * m * d * len(before),
      transcendentals=m * f,
    ),
    interpret=spec.interpret,
    name=f'ffn_forward_{_label(spec)}',
  )(x, branches, wo, before, *([coefficients] if spec.num_coefficients else []))


def backward(
  spec: Spec,
  x,
  branches,
  wo,
  coefficients,
  kept,
  dy,
  before=(),
  dtype=None,
):
  """Returns dx, (dW, dV), dWo and dc; all but dx in float32, dc as [K].

  Args:
    spec: what to compile.
    x: [M, D].
    branches: W (and V), [D, F].
    wo: [F, D].
    coefficients: [1, K], float32.
    kept: z (and u), [M, F] in the dtype of x, or none.
    dy: [M, D].
    before: one float32 array [M, D], the dx of other parts of F, or none.
    dtype: of dx; None is that of x.
  """
  (m, d), f, t = x.shape, wo.shape[0], spec.tiles
  cores, steps = t.cores, m // t.rows // t.cores
  tile = pl.BlockSpec((t.rows, d), lambda c, i: (c * steps + i, 0))
  wide = pl.BlockSpec((t.rows, f), lambda c, i: (c * steps + i, 0))

  def sums(*shape):
    # A block of each core's own, visited at every one of its steps.
    block = pl.BlockSpec(
      (None, *shape), lambda c, i: (c, *[0] * len(shape)), **_once(spec)
    )
    return block, jax.ShapeDtypeStruct((cores, *shape), jnp.float32)

  dbranches = tuple(zip(*(sums(*w.shape) for w in branches), strict=True))
  dwo = sums(*wo.shape)
  dc = (
    [sums(spec.num_coefficients, _SUBLANES, tiling.LANES)]
    if spec.num_coefficients
    else []
  )
  matrices = (1 + len(branches)) * d * f
  wide_scratch = functools.partial(pltpu.VMEM, (_slots(t, f), t.rows, t.width))
  number = len(branches)
  dx, dbranches, dwo, *dc = pl.pallas_call(
    functools.partial(_backward_kernel, spec),
    grid=(cores, steps),
    in_specs=(
      tile,
      tuple(_resident(spec, w.shape) for w in branches),
      _resident(spec, wo.shape),
      (wide,) * len(kept),
      tile,
      (tile,) * len(before),
      *_scalars(spec),
    ),
    out_specs=(tile, dbranches[0], dwo[0], *(s[0] for s in dc)),
    out_shape=(
      jax.ShapeDtypeStruct((m, d), dtype or x.dtype),
      dbranches[1],
      dwo[1],
      *(s[1] for s in dc),
    ),
    scratch_shapes=(
      pltpu.VMEM((t.rows, d), jnp.float32),
      () if kept else (wide_scratch(jnp.float32),) * number,
      wide_scratch(jnp.float32),
      wide_scratch(x.dtype),
      (wide_scratch(x.dtype),) * number,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=t.vmem
    ),
    cost_estimate=pl.CostEstimate(
      flops=(4 if kept else 6) * m * matrices,
      bytes_accessed=(3 * m * d + len(kept) * m * f + matrices)
      * x.dtype.itemsize
      + 4 * (cores * matrices + m * d * len(before)),
      transcendentals=m * f,
    ),
    interpret=spec.interpret,
    name=f'ffn_backward_{_label(spec)}',
  )(
    x,
    branches,
    wo,
    tuple(kept),
    dy,
    before,
    *([coefficients] if spec.num_coefficients else []),
  )
  vector = dc[0].sum((0, 2, 3)) if dc else jnp.zeros((0,), jnp.float32)
  return dx, tuple(w.sum(0) for w in dbranches), dwo.sum(0), vector


def _forward_kernel(spec, x_ref, w_refs, wo_ref, before_refs, *refs):
  c_ref = refs[0] if spec.num_coefficients else None
  y_ref, kept_refs, sum_ref, z_refs, h_ref = refs[bool(spec.num_coefficients) :]
  x = x_ref[...]
  _start(sum_ref, before_refs)
  for j, columns, slot, own in _blocks(spec.tiles, wo_ref.shape[0]):
    for w_ref, z_ref in zip(w_refs, z_refs, strict=True):
      z_ref[own] = _dot(x, w_ref[:, columns], _NN)
    for kept_ref, z_ref in zip(kept_refs, z_refs, strict=False):
      kept_ref[:, columns] = z_ref[own].astype(kept_ref.dtype)
    for chunk in _chunks(spec.tiles, columns.size):
      zs = [_folded(z_ref[slot, *chunk]) for z_ref in z_refs]
      h = _hidden(spec, zs, _spread(spec, c_ref))
      _store(h_ref, (slot, *chunk), h)
    first = j == 0 and not before_refs
    _add(sum_ref, _dot(h_ref[own], wo_ref[columns, :], _NN), first)
  y_ref[...] = sum_ref[...].astype(y_ref.dtype)


def _backward_kernel(
  spec, x_ref, w_refs, wo_ref, kept_refs, dy_ref, before_refs, *refs
):
  c_ref = refs[0] if spec.num_coefficients else None
  dx_ref, dw_refs, dwo_ref, *rest = refs[bool(spec.num_coefficients) :]
  dc_ref: Any = rest.pop(0) if spec.num_coefficients else None
  sum_ref, z_refs, dh_ref, h_ref, dz_refs = rest

  @pl.when(pl.program_id(1) == 0)
  def _():
    for ref in (
      *dw_refs,
      dwo_ref,
      *([dc_ref] if spec.num_coefficients else []),
    ):
      ref[...] = jnp.zeros(ref.shape, ref.dtype)

  x, dy = x_ref[...], dy_ref[...]
  _start(sum_ref, before_refs)
  for j, columns, slot, own in _blocks(spec.tiles, wo_ref.shape[0]):
    for w_ref, z_ref in zip(w_refs, z_refs, strict=False):
      z_ref[own] = _dot(x, w_ref[:, columns], _NN)
    dh_ref[own] = _dot(dy, wo_ref[columns, :], _NT)
    totals = [0.0] * spec.num_coefficients
    for rows, lanes in _chunks(spec.tiles, columns.size):
      if kept_refs:
        begin = columns.start + lanes.start
        at = rows, pl.ds(begin, lanes.size)
        zs = [_folded(ref[at].astype(jnp.float32)) for ref in kept_refs]
      else:
        zs = [_folded(ref[slot, rows, lanes]) for ref in z_refs]
      h, pull = jax.vjp(
        functools.partial(_hidden, spec), zs, _spread(spec, c_ref)
      )
      dzs, dc = pull(_folded(dh_ref[slot, rows, lanes]))
      _store(h_ref, (slot, rows, lanes), h)
      for dz_ref, dz in zip(dz_refs, dzs, strict=True):
        _store(dz_ref, (slot, rows, lanes), dz)
      flat = [tile for name, _ in spec.sizes for tile in dc[name]]
      totals = [a + _to_one_tile(b) for a, b in zip(totals, flat, strict=True)]
    for k, total in enumerate(totals):
      dc_ref[k] += total
    dwo_ref[columns, :] += _dot(h_ref[own], dy, _TN)
    for b, (w_ref, dw_ref, dz_ref) in enumerate(
      zip(w_refs, dw_refs, dz_refs, strict=True)
    ):
      dz = dz_ref[own]
      first = j == 0 and b == 0 and not before_refs
      _add(sum_ref, _dot(dz, w_ref[:, columns], _NT), first)
      dw_ref[:, columns] += _dot(x, dz, _TN)
  dx_ref[...] = sum_ref[...].astype(dx_ref.dtype)


def _hidden(spec, zs, coefficients):
  hidden = spec.activation.fn(zs[0], coefficients)
  return hidden * zs[1] if spec.gated else hidden


def _dot(a, b, contract):
  return lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)


def _start(sum_ref, before_refs):
  """The sum of the parts before, if there are any."""
  for ref in before_refs:
    sum_ref[...] = ref[...]


def _add(ref, value, first):
  ref[...] = value if first else ref[...] + value


def _slots(tiles, f):
  """Two, so that a block's matmuls need not wait for the last one's chunks."""
  return min(2, -(-f // tiles.width))


def _blocks(tiles, f):
  """Each block's number, columns, slot, and own part of a scratch array."""
  slots = _slots(tiles, f)
  for j, begin in enumerate(range(0, f, tiles.width)):
    width = min(tiles.width, f - begin)
    own = j % slots, slice(None), pl.ds(0, width)
    yield j, pl.ds(begin, width), j % slots, own


def _chunks(tiles, width):
  rows, lanes = tiles.chunk
  for row in range(0, tiles.rows, rows):
    for lane in range(0, width, lanes):
      yield pl.ds(row, rows), pl.ds(lane, lanes)


def _folded(tile):
  """A chunk as (rows / 8, 8, lanes), which moves nothing in registers."""
  return tile.reshape(-1, _SUBLANES, tile.shape[-1])


def _store(ref, at, value):
  ref[at] = value.reshape(-1, value.shape[-1]).astype(ref.dtype)


def _spread(spec, c_ref):
  """Each coefficient as a (1, 8, lanes) array, by name."""
  shape = (1, _SUBLANES, spec.tiles.chunk[1])
  names, k = {}, 0
  for name, size in spec.sizes:
    names[name] = [jnp.full(shape, c_ref[0, k + i]) for i in range(size)]
    k += size
  return names


def _to_one_tile(cotangent):
  """(1, 8, lanes) summed to (8, 128)."""
  lanes = cotangent.shape[-1]
  return sum(
    cotangent[0, :, begin : begin + tiling.LANES]
    for begin in range(0, lanes, tiling.LANES)
  )


def _resident(spec, shape):
  """A whole matrix, fetched once."""
  return pl.BlockSpec(shape, lambda *_: (0,) * len(shape), **_once(spec))


def _once(spec):
  """One buffer: the block never changes. Interpreters have no buffers."""
  return {} if spec.interpret else {'pipeline_mode': pl.Buffered(1)}


def _scalars(spec):
  if not spec.num_coefficients:
    return ()
  return (pl.BlockSpec(memory_space=pltpu.SMEM),)


def _label(spec):
  name = ''.join(c if c.isalnum() else '_' for c in spec.activation.name)
  return f'{name}{"_gated" if spec.gated else ""}'


def tile_rows(tokens: int, tiles: tiling.Tiles) -> int:
  """Tokens to pad to: whole tiles, as many on each core."""
  return tiling.round_up(tokens, tiles.rows * tiles.cores)


def unaligned(size: int) -> bool:
  """Whether a width is no multiple of the lanes."""
  return size % tiling.LANES != 0
