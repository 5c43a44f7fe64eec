"""Padding, mesh and derivative around the TPU kernels.

Padding: tokens to whole tiles, D and F to multiples of 128. What the activation
is computed on is padded with copies of its last row or column (x along the
tokens; W, V along F; the stored z, u along both), because an activation may
have no finite value or derivative at 0. All else is padded with zeros, so the
padding contributes nothing: a padded token has dy = 0 and a padded column of F
has Wo = 0, hence dh = 0 and with it every cotangent; a padded column of D has
x = W = 0. A row-wise activation would count the padded columns of F, so there
F must be aligned.

Parts: where the weights do not fit VMEM, F is cut into parts (tiles.py), and
y and dx are sums over them. What is kept of each part stays apart.

Mesh: tokens over `data`, F over `model`. Every device runs the kernels on what
it has; summed are y and dx over `model`, the weights' gradients over `data`,
the coefficients' over both. No tensor is gathered for it. A row-wise activation
needs its rows whole, so there `model` must be 1.

Shapes: x, y [..., D], the first axis over `data`; z, u [..., F].
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from t5x_variants import chips, errors
from t5x_variants.kernels import pallas_tpu
from t5x_variants.kernels import tiles as tiling

DATA, MODEL = 'data', 'model'
# By this name a checkpoint policy keeps the stored pre-activations.
PREACTIVATIONS = 'ffn_preactivations'
DTYPES = ('bfloat16', 'float32')
_ZEROS, _EDGE = 'constant', 'edge'


class Block(NamedTuple):
  """The static part of a block; hashable.

  Attributes:
    activation: a record of the activation table.
    gated: whether there is a linear branch.
    save: 'inputs' or 'preactivations'.
    chip: the TPU generation the kernels are cut for.
    mesh: a mesh with the axes `data` and `model`, or None.
    interpret: False, or what pallas_call takes to interpret a kernel.
    tiles: None, or tiles in place of the ones chosen by size.
  """

  activation: Any
  gated: bool
  save: str
  chip: chips.Chip
  mesh: Any = None
  interpret: Any = False
  tiles: tiling.Tiles | None = None


def why_not(block: Block, x, wo) -> str | None:
  """Why the kernels cannot run this, in a sentence; None if they can."""
  name, f = block.activation.name, wo.shape[0]
  rowwise = block.activation.kind == 'rowwise'
  if x.dtype not in DTYPES:
    return (
      f'x has dtype {x.dtype}; TPU kernels compute in {" or ".join(DTYPES)}.'
    )
  if block.save == 'all':
    return "save='all' is autodiff's; take 'inputs' or 'preactivations'."
  if not x.size:
    return f'x has shape {x.shape}: there are no tokens.'
  if block.mesh is not None:
    shape = dict(block.mesh.shape)
    if missing := {DATA, MODEL} - set(shape):
      return f'the mesh has the axes {list(shape)} and lacks {sorted(missing)}.'
    if x.ndim < 2 or x.shape[0] % shape[DATA]:
      return (
        f'x has shape {x.shape}, whose first axis the mesh splits over '
        f'{shape[DATA]} devices of `data`: make it a multiple.'
      )
    if f % shape[MODEL]:
      return (
        f'F is {f}, which the mesh splits over {shape[MODEL]} devices of '
        '`model`: make it a multiple.'
      )
    if rowwise and shape[MODEL] > 1:
      return (
        f'{name!r} needs whole rows of F, but the mesh splits F over '
        f'{shape[MODEL]} devices of `model`.'
      )
  if rowwise and pallas_tpu.unaligned(f):
    return (
      f'{name!r} averages over F = {f}, which is no multiple of '
      f'{tiling.LANES} and cannot be padded.'
    )
  try:
    _tiles(block, *_local(block, x, f), x.dtype)
  except errors.UserError as error:
    return str(error)
  return None


def ffn(block: Block, x, branches, wo, coefficients):
  """The block by the kernels; the operands are checked already."""
  return _ffn(block, x, branches, wo, dict(coefficients))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(block, x, branches, wo, coefficients):
  return _forward(block, x, branches, wo, coefficients)[0]


def _save(block, x, branches, wo, coefficients):
  y, kept = _forward(block, x, branches, wo, coefficients)
  kept = tuple(checkpoint_name(z, PREACTIVATIONS) for z in kept)
  return y, (x, branches, wo, coefficients, kept)


def _forward(block, x, branches, wo, coefficients):
  x_spec, z_spec, w_spec, wo_spec = _specs(x.ndim)
  count = len(branches)
  kept = 0
  if block.save == 'preactivations':
    kept = count * _tiles(block, *_local(block, x, len(wo)), x.dtype).parts

  def local(x, branches, wo, coefficients):
    y, kept = _local_forward(block, x, branches, wo, coefficients)
    return (y if block.mesh is None else lax.psum(y, MODEL)), kept

  return _mapped(
    block,
    local,
    (x_spec, (w_spec,) * count, wo_spec, P()),
    (x_spec, (z_spec,) * kept),
  )(x, branches, wo, coefficients)


def _backward(block, residuals, dy):
  x, branches, wo, _, kept = residuals
  x_spec, z_spec, w_spec, wo_spec = _specs(x.ndim)
  w_specs = (w_spec,) * len(branches)

  def local(*arguments):
    dx, dbranches, dwo, dcoefficients = _local_backward(block, *arguments)
    if block.mesh is not None:
      dx = lax.psum(dx, MODEL)
      dbranches, dwo = lax.psum((dbranches, dwo), DATA)
      dcoefficients = lax.psum(dcoefficients, (DATA, MODEL))
    return dx, dbranches, dwo, dcoefficients

  dx, dbranches, dwo, dcoefficients = _mapped(
    block,
    local,
    (x_spec, w_specs, wo_spec, P(), (z_spec,) * len(kept), x_spec),
    (x_spec, w_specs, wo_spec, P()),
  )(*residuals, dy)
  dbranches = tuple(
    d.astype(w.dtype) for d, w in zip(dbranches, branches, strict=True)
  )
  return dx, dbranches, dwo.astype(wo.dtype), dcoefficients


_ffn.defvjp(_save, _backward)


def _specs(ndim):
  middle = (None,) * (ndim - 2)
  return (
    P(DATA, *middle, None),
    P(DATA, *middle, MODEL),
    P(None, MODEL),
    P(MODEL, None),
  )


def _mapped(block, local, in_specs, out_specs):
  if block.mesh is None:
    return local
  return jax.shard_map(
    local,
    mesh=block.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    # The kernels' outputs do not say over which axes they vary.
    check_vma=False,
  )


def _local(block, x, f) -> tuple[int, int, int]:
  """Tokens, D and F on one device."""
  tokens, d = x.size // x.shape[-1], x.shape[-1]
  if block.mesh is not None:
    tokens //= block.mesh.shape[DATA]
    f //= block.mesh.shape[MODEL]
  return tokens, d, f


def _tiles(block, tokens, d, f, dtype):
  return block.tiles or tiling.choose(
    tokens,
    tiling.round_up(d, tiling.LANES),
    tiling.round_up(f, tiling.LANES),
    dtype,
    gated=block.gated,
    rowwise=block.activation.kind == 'rowwise',
    save=block.save,
    chip=block.chip,
  )


def _spec(block, tokens, d, f, dtype, coefficients):
  return pallas_tpu.Spec(
    block.activation,
    block.gated,
    tuple((name, len(coefficients[name])) for name in sorted(coefficients)),
    block.save == 'preactivations',
    _tiles(block, tokens, d, f, dtype),
    block.interpret,
  )


def _pad(array, rows, modes):
  """Pads the end of both axes, to so many rows and to whole lanes.

  `modes` are jnp.pad's, of each axis: _ZEROS, or _EDGE for copies of the last.
  """
  shape = rows, tiling.round_up(array.shape[1], tiling.LANES)
  for axis, (size, mode) in enumerate(zip(shape, modes, strict=True)):
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, size - array.shape[axis])
    if size > array.shape[axis]:
      array = jnp.pad(array, widths, mode)
  return array


def _rows(spec, array, modes):
  """Tokens as rows, in whole tiles and whole lanes."""
  array = array.reshape(-1, array.shape[-1])
  return _pad(array, pallas_tpu.tile_rows(len(array), spec.tiles), modes)


def _operands(spec, x, branches, wo, coefficients):
  """The operands, padded, in the dtypes that the kernels take."""
  d, f = (tiling.round_up(n, tiling.LANES) for n in (x.shape[-1], wo.shape[0]))
  vector = jnp.zeros((1, 0), jnp.float32)
  if spec.sizes:
    vector = jnp.concatenate([coefficients[name] for name, _ in spec.sizes])
    vector = vector.astype(jnp.float32)[None]
  return (
    _rows(spec, x, (_EDGE, _ZEROS)),
    tuple(_pad(w.astype(x.dtype), d, (_ZEROS, _EDGE)) for w in branches),
    _pad(wo.astype(x.dtype), f, (_ZEROS, _ZEROS)),
    vector,
  )


def _local_forward(block, x, branches, wo, coefficients):
  tokens, (d, f) = x.size // x.shape[-1], branches[0].shape
  spec = _spec(block, tokens, d, f, x.dtype, coefficients)
  rows, *weights, vector = _operands(spec, x, branches, wo, coefficients)
  y: tuple = ()
  kept: list = []
  for last, branches, wo in _parts(spec, *weights):
    dtype = x.dtype if last else jnp.float32
    y, zs = pallas_tpu.forward(spec, rows, branches, wo, vector, y, dtype)
    kept += zs
    y = (y,)
  zs = tuple(z[:tokens, :f].reshape(*x.shape[:-1], -1) for z in kept)
  return y[0][:tokens, :d].reshape(x.shape), zs


def _local_backward(block, x, branches, wo, coefficients, kept, dy):
  tokens, (d, f) = x.size // x.shape[-1], branches[0].shape
  spec = _spec(block, tokens, d, f, x.dtype, coefficients)
  rows, *weights, vector = _operands(spec, x, branches, wo, coefficients)
  dy = _rows(spec, dy, (_ZEROS, _ZEROS))
  kept = (_rows(spec, z, (_EDGE, _EDGE)) for z in kept)
  dx: tuple = ()
  dbranches, dwos = [], []
  dvector: Any = 0.0
  for last, branches, wo in _parts(spec, *weights):
    zs = tuple(itertools.islice(kept, len(branches)))
    dx, *dweights, dc = pallas_tpu.backward(
      spec,
      rows,
      branches,
      wo,
      vector,
      zs,
      dy,
      dx,
      x.dtype if last else jnp.float32,
    )
    dx = (dx,)
    dbranches.append(dweights[0])
    dwos.append(dweights[1])
    dvector += dc
  dcoefficients, k = {}, 0
  for name, size in spec.sizes:
    dcoefficients[name] = dvector[k : k + size]
    k += size
  return (
    dx[0][:tokens, :d].reshape(x.shape),
    tuple(
      jnp.concatenate(parts, 1)[:d, :f]
      for parts in zip(*dbranches, strict=True)
    ),
    jnp.concatenate(dwos)[:f, :d],
    dcoefficients,
  )


def _parts(spec, branches, wo):
  """Yields, of each part of F, whether it is the last, W (and V), and Wo."""
  width = wo.shape[0] // spec.tiles.parts
  for begin in range(0, wo.shape[0], width):
    columns = slice(begin, begin + width)
    last = columns.stop == wo.shape[0]
    yield last, tuple(w[:, columns] for w in branches), wo[columns]
