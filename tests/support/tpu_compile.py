"""Compiles the kernels with the real TPU compiler; test_tpu_compile runs it.

  python tests/support/tpu_compile.py v5e:2x2

Needs libtpu and no TPU. A process of its own, because the environment must be
set before jax is imported. Small tiles, so that all of the table takes seconds.
"""

import os

os.environ.update(
  JAX_PLATFORMS='cpu',
  TPU_SKIP_MDS_QUERY='1',
  TPU_WORKER_HOSTNAMES='localhost',
  TPU_ACCELERATOR_TYPE='v5litepod-4',
  ALLOW_MULTIPLE_LIBTPU_LOAD='1',
)

import dataclasses
import functools
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_variants import activations, chips, kernels
from t5x_variants.kernels import sharded, tiles

D, F = 128, 256
COLLECTIVE = r'\b(all-gather|all-reduce|all-to-all|collective-permute'
COLLECTIVE += r'|reduce-scatter)(?:-start)?\('


def step(function, operands, dy):
  """Value and every gradient."""
  y, pull = jax.vjp(function, *operands)
  return y, pull(dy)


def shapes(activation, gated, x_shape, specs):
  """Shapes of the operands, and of dy, placed by the given function."""
  branches = tuple(specs((D, F), 'w') for _ in range(1 + gated))
  coefficients = {
    name: specs(value.shape, 'c') for name, value in activation.init().items()
  }
  x = specs(x_shape, 'x')
  return (x, branches, specs((F, D), 'wo'), coefficients), x


def compile_table(devices):
  """Every activation, gated and not, stored and not, on one device."""
  chip = chips.CHIPS[devices[0].device_kind]
  place = jax.sharding.SingleDeviceSharding(devices[0])

  def specs(shape, what):
    dtype = jnp.float32 if what == 'c' else jnp.bfloat16
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  variants = itertools.product(
    activations.names(), (False, True), ('inputs', 'preactivations')
  )
  for name, gated, save in variants:
    activation = activations.get(name)
    cut = tiles.Tiles(64, 128, (64, 128), chip.cores, 16 * chips.MIB)
    if activation.kind == 'rowwise':
      cut = tiles.Tiles(64, F, (16, F), chip.cores, 16 * chips.MIB)
    block = sharded.Block(activation, gated, save, chip, tiles=cut)
    operands, dy = shapes(activation, gated, (200, D), specs)
    run = functools.partial(step, functools.partial(sharded.ffn, block))
    text = jax.jit(run).lower(operands, dy).compile().as_text()
    assert text.count('tpu_custom_call') >= 2
    print(chip.name, name, 'gated' if gated else 'ungated', save)
  # Two kernels, one for each half of F.
  cut = dataclasses.replace(cut, width=128, chunk=(64, 128), parts=2)
  block = sharded.Block(activations.get('swish'), True, save, chip, tiles=cut)
  operands, dy = shapes(block.activation, True, (200, D), specs)
  run = functools.partial(step, functools.partial(sharded.ffn, block))
  text = jax.jit(run).lower(operands, dy).compile().as_text()
  assert text.count('tpu_custom_call') >= 4
  print(chip.name, 'swish gated', save, 'in parts')


def collectives(devices):
  """The collectives of a gated rational block on a mesh.

  By jax.set_mesh, and by the `with mesh:` of t5x.
  """
  mesh = Mesh(np.array(devices).reshape(4, -1), ('data', 'model'))
  rules = {'x': P('data'), 'w': P(None, 'model'), 'wo': P('model'), 'c': P()}

  def specs(shape, what):
    dtype = jnp.bfloat16 if what == 'x' else jnp.float32
    where = NamedSharding(mesh, rules[what])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  activation = activations.get('rational')

  def block(x, branches, wo, coefficients):
    return kernels.ffn(
      x, branches, wo, coefficients, activation, True, implementation='pallas'
    )

  found = []
  for enter in (jax.set_mesh, lambda legacy: legacy):
    with enter(mesh):
      operands, dy = shapes(activation, True, (8, 16, D), specs)
      run = functools.partial(step, block)
      text = jax.jit(run).lower(operands, dy).compile().as_text()
    assert 'tpu_custom_call' in text
    found.append(sorted(re.findall(COLLECTIVE, text)))
  assert found[0] == found[1], found
  return found[0]


def main(topology):
  """Compiles for one topology and prints what was compiled."""
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  if len(devices) == 16:
    print(*collectives(devices))
  else:
    compile_table(devices)


if __name__ == '__main__':
  main(sys.argv[1])
