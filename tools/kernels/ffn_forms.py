"""The forms of the feed-forward block that bench_ffn.py compares.

Errors against float64 of each, and the time of XLA's on this machine.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5x_variants import activations
from t5x_variants.kernels import reference, sharded, tiles
from t5x_variants.model import stacks

FORMS = (
  'pallas inputs',
  'xla remat',
  'pallas preactivations',
  'xla dots',
  'xla inputs',
  'xla preactivations',
)
_POLICIES = {'remat': 'full', 'dots': 'minimal'}


def parse(block: str):
  """The activation and the gating of a name like 'swish:gated'."""
  name, _, gate = block.partition(':')
  return activations.get(name), gate == 'gated'


def block_of(activation, gated, form, chip, interpret=False):
  """The block as a function of its operands."""
  implementation, save = form.split()
  if implementation == 'pallas':
    return functools.partial(
      sharded.ffn,
      sharded.Block(activation, gated, save, chip, interpret=interpret),
    )

  def block(x, branches, wo, coefficients):
    wi = branches if gated else branches[0]
    return reference.ffn(
      x,
      wi,
      wo,
      coefficients,
      activation,
      gated,
      save='all' if save in _POLICIES else save,
    )

  if save not in _POLICIES:
    return block
  policy = stacks.REMAT_POLICIES[_POLICIES[save]]
  return jax.checkpoint(block, policy=policy)


def pulled(block, operands, dy):
  """The block's value and every gradient."""
  y, pull = jax.vjp(block, *operands)
  return y, pull(dy)


def draw(activation, gated, tokens, d, f, dtype, seed=0):
  """Operands, coefficients a little off where they start, and dy."""
  rng = np.random.default_rng(seed)

  def normal(*shape, scale=1.0):
    return jnp.asarray(rng.normal(0, scale, shape), dtype)

  coefficients = {
    name: jnp.asarray(value * rng.uniform(0.8, 1.2, value.shape), jnp.float32)
    for name, value in activation.init().items()
  }
  branches = tuple(normal(d, f, scale=d**-0.5) for _ in range(1 + gated))
  wo = normal(f, d, scale=f**-0.5)
  return (normal(tokens, d), branches, wo, coefficients), normal(tokens, d)


def errors_of(name, tokens=512, d=256, f=1024):
  """Yields a form and its relative L2 errors in bfloat16 against float64.

  Of y, dx, dW and dV, dWo, and the coefficients' gradients as one vector. The
  kernels are interpreted.
  """
  activation, gated = parse(name)
  operands, dy = draw(activation, gated, tokens, d, f, jnp.bfloat16)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (operands, dy))
    plain = block_of(activation, gated, 'xla all', None)
    want = jax.jit(pulled, static_argnums=0)(plain, *wide)
    want = jax.tree.map(np.asarray, want)
  for form in ('xla all', *FORMS):
    block = block_of(activation, gated, form, tiles.INTERPRETED, True)
    got = jax.jit(pulled, static_argnums=0)(block, operands, dy)
    yield (
      form,
      [_distance(a, b) for a, b in zip(_parts(got), _parts(want), strict=True)],
    )


def _parts(out):
  y, (dx, dbranches, dwo, dcoefficients) = out
  return y, dx, dbranches, dwo, dcoefficients


def _distance(got, want) -> float | None:
  got, want = (
    [np.ravel(np.asarray(a, np.float64)) for a in jax.tree.leaves(tree)]
    for tree in (got, want)
  )
  if not want:
    return None
  got, want = np.concatenate(got), np.concatenate(want)
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def times_of(name, tokens, d, f, repeats=7):
  """Yields an XLA form, its median milliseconds, and its temporaries in MB.

  Forward and backward pass as one program, in this machine's usual dtype:
  bfloat16, or float32 on a CPU.
  """
  activation, gated = parse(name)
  dtype = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  operands, dy = draw(activation, gated, tokens, d, f, dtype)
  for form in ('xla all', *(f for f in FORMS if f.startswith('xla'))):
    block = block_of(activation, gated, form, None)
    run = jax.jit(functools.partial(pulled, block))
    run = run.lower(operands, dy).compile()
    spent = []
    for _ in range(repeats + 1):
      begin = time.perf_counter()
      jax.block_until_ready(run(operands, dy))
      spent.append(time.perf_counter() - begin)
    memory = run.memory_analysis()
    yield (
      form,
      1e3 * statistics.median(spent[1:]),
      memory.temp_size_in_bytes / 1e6 if memory else None,
    )
