"""Blocks to run: operands, forms, and their errors against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from quick_jit import jit

from t5x_variants import activations, chips, kernels
from t5x_variants.kernels import reference, sharded, tiles

NAMES = activations.names()
SAVES = ('inputs', 'preactivations')
# Two tiles, two blocks of F; each its own chunk, or (when whole) two chunks.
SMALL = tiles.Tiles(32, 128, (32, 128), 1, 0)
SMALL_ROWS = tiles.Tiles(32, 256, (16, 256), 1, 0)
# Has no finite derivative at 0.
SIGNED_ROOT = activations.define(
  'signed_root',
  lambda z, c: jnp.where(z < 0, -1, 1) * jnp.sqrt(jnp.where(z < 0, -z, z)),
  paper='2026',
)


def operands(
  activation, gated, shape=(5, 9, 20), f=200, dtype='float32', seed=0
):
  """x, branches, Wo, coefficients away from where they start, and dy."""
  rng = np.random.default_rng(seed)
  d = shape[-1]

  def draw(*shape, scale=1.0):
    return jnp.asarray(rng.normal(0, scale, shape), dtype)

  if activation.kind == 'rowwise':
    f = tiles.round_up(f, tiles.LANES)
  coefficients = {
    name: jnp.asarray(value * rng.uniform(0.8, 1.2, value.shape), jnp.float32)
    for name, value in activation.init().items()
  }
  branches = tuple(draw(d, f, scale=d**-0.5) for _ in range(1 + gated))
  wo = draw(f, d, scale=f**-0.5)
  return (draw(*shape), branches, wo, coefficients), draw(*shape)


def value_and_pulled(function, primals, dy):
  y, pull = jax.vjp(function, *primals)
  return y, pull(dy)


def exact(activation, gated, primals, dy):
  """Value and gradients in float64, by plain autodiff."""
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (primals, dy))

    def plain(x, branches, wo, coefficients):
      wi = branches if gated else branches[0]
      return reference.ffn(x, wi, wo, coefficients, activation, gated)

    run = jit(functools.partial(value_and_pulled, plain))
    return jax.tree.map(np.asarray, run(*wide))


def by_reference(activation, gated, save, **kwargs):
  def run(x, branches, wo, coefficients):
    wi = branches if gated else branches[0]
    return reference.ffn(
      x, wi, wo, coefficients, activation, gated, save=save, **kwargs
    )

  return run


def by_kernel(activation, gated, save, cut='small', interpret=True):
  """Interpreted in small pieces; `cut` None: in those of a v5e."""
  if cut == 'small':
    cut = SMALL_ROWS if activation.kind == 'rowwise' else SMALL
  chip = chips.CHIPS['TPU v5e']
  block = sharded.Block(activation, gated, save, chip, None, interpret, cut)
  return functools.partial(sharded.ffn, block)


def distances(got, want):
  """Relative L2 error of each leaf."""

  def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # max() of the errors would pass over one that is no number.
    assert np.isfinite(a).all() and np.isfinite(b).all()
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)

  def joined(out):
    # One vector of coefficients: one alone may be a sum that cancels.
    y, (dx, dbranches, dwo, dc) = out
    flat = [np.asarray(v, np.float64) for v in jax.tree.leaves(dc)]
    return y, (dx, dbranches, dwo, np.concatenate(flat or [np.zeros(0)]))

  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
  return jax.tree.map(distance, joined(got), joined(want))


def errors_of(activation, gated, dtype, functions, **sizes):
  """Errors against float64 of each function's value and gradients."""
  primals, dy = operands(activation, gated, dtype=dtype, **sizes)
  want = exact(activation, gated, primals, dy)

  @jit
  def run(primals, dy):
    return {k: value_and_pulled(f, primals, dy) for k, f in functions.items()}

  got = run(primals, dy)
  for y, (dx, dbranches, dwo, dc) in got.values():
    assert {a.dtype for a in (y, dx, *dbranches, dwo)} == {jnp.dtype(dtype)}
    assert {a.dtype for a in dc.values()} <= {jnp.dtype('float32')}
  return {name: distances(out, want) for name, out in got.items()}


def all_forms(activation, gated):
  forms = {('xla', 'all'): by_reference(activation, gated, 'all')}
  for save in SAVES:
    forms['xla', save] = by_reference(activation, gated, save)
    forms['pallas', save] = by_kernel(activation, gated, save)
  return forms


def call(name='gelu', gated=False, implementation='pallas_interpret', **kwargs):
  activation = activations.get(name)
  changes = {k: kwargs.pop(k) for k in ('shape', 'f', 'dtype') if k in kwargs}
  (x, branches, wo, coefficients), _ = operands(activation, gated, **changes)
  return kernels.ffn(
    x,
    branches if gated else branches[0],
    wo,
    kwargs.pop('coefficients', coefficients),
    kwargs.pop('activation', activation),
    gated,
    implementation=implementation,
    **kwargs,
  )
