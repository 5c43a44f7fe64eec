"""HBM bytes of the feed-forward block on TPUs, without a TPU.

  python tools/bench_ffn.py [--models base large] [--chips v6e v5e]
      [--variants swish:gated rational] [--tokens 65536] [--output FILE]

STATIC figures: the forward and the backward pass are compiled by libtpu's own
compiler, as two programs, which is what a scan boundary between them means,
and the operands and results of the instructions that lie in HBM are added up.
Nothing is run, no time is measured. Rows:

  all               XLA, plain autodiff
  inputs            XLA, full rematerialisation
  preactivations    XLA, matmul outputs saved
  pallas inputs, pallas preactivations      the kernels
  floor             each operand and result of the block read or written once,
                    x and the weights once in each pass, nothing else

saved: MB a layer keeps for the backward pass, x included, parameters not.
VMEM: MiB that the kernels' tiles ask for.
"""

import os

os.environ.update(
  JAX_PLATFORMS='cpu',
  TPU_SKIP_MDS_QUERY='1',
  TPU_WORKER_HOSTNAMES='localhost',
  TPU_ACCELERATOR_TYPE='v5litepod-4',
  ALLOW_MULTIPLE_LIBTPU_LOAD='1',
)

import argparse  # noqa: E402
import functools  # noqa: E402
import math  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from t5x_variants import activations, mlp  # noqa: E402
from t5x_variants.kernels import reference, sharded, tiles  # noqa: E402

TOPOLOGIES = {
  'v5e': 'v5e:2x2',
  'v6e': 'v6e:2x2',
  'v5p': 'v5p:2x2x1',
  '7x': 'tpu7x:2x2x1',
}
# emb_dim and the width of an ungated block.
MODELS = {'small': (512, 1536), 'base': (768, 3072), 'large': (1024, 4224)}
SAVES = {'xla': ('all', 'inputs', 'preactivations')}
SAVES['pallas'] = SAVES['xla'][1:]
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4}
BYTES |= {'f32': 4, 's64': 8, 'u64': 8}
ARRAY = re.compile(r'\b([a-z]+[0-9]*)\[([0-9,]*)\](\{[^}]*\})?')
LINE = re.compile(r'^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
# What moves nothing, or is counted where the transfer is started.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}
FREE |= {'copy-done', 'slice-done', 'async-done', 'after-all', 'iota'}


def array_bytes(text: str) -> int:
  """Bytes of the arrays in a type that lie in HBM."""
  total = 0
  for dtype, sizes, layout in ARRAY.findall(text):
    if dtype in BYTES and 'S(' not in layout:
      total += BYTES[dtype] * math.prod(int(n) for n in sizes.split(',') if n)
  return total


def hbm_bytes(hlo: str) -> int:
  """Operands and results in HBM of the entry computation's instructions."""
  entry = hlo[hlo.index('\nENTRY ') :]
  types, total = {}, 0
  for line in entry.splitlines():
    found = LINE.match(line)
    if not found:
      continue
    name, kind, operation, rest = found.groups()
    types[name] = kind
    if operation in FREE:
      continue
    if operation == 'while':
      raise SystemExit(f'A loop, whose trips are not counted: {line[:120]}')
    if operation in ('copy-start', 'slice-start', 'async-start'):
      # (destination, source, context): what is moved has one size.
      kind = kind.split(', ')[0] if operation == 'copy-start' else kind
    operands = re.findall(r'%[\w.\-]+', rest.split('), ')[0])
    total += array_bytes(kind)
    total += sum(array_bytes(types.get(o, '')) for o in set(operands))
  return total


def functions(activation, gated, implementation, save, chip):
  """The block as a function of its operands."""
  if implementation == 'pallas':
    return functools.partial(
      sharded.ffn, sharded.Block(activation, gated, save, chip)
    )

  def block(x, branches, wo, coefficients):
    wi = branches if gated else branches[0]
    return reference.ffn(x, wi, wo, coefficients, activation, gated, save=save)

  return block


def measure(block, operands, place):
  """HBM bytes of the forward pass, of the backward pass, and bytes saved."""
  _, pull = jax.eval_shape(lambda *p: jax.vjp(block, *p), *operands)
  leaves, tree = jax.tree.flatten(pull)
  residuals = [
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    for leaf in leaves
  ]

  def forward(*operands):
    y, pull = jax.vjp(block, *operands)
    return y, jax.tree.leaves(pull)

  def backward(residuals, dy):
    return jax.tree.unflatten(tree, residuals)(dy)

  x, branches, wo, coefficients = operands
  params = jax.tree.leaves((branches, wo, coefficients))
  saved = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  saved -= sum(leaf.size * leaf.dtype.itemsize for leaf in params)
  ahead = jax.jit(forward).lower(*operands).compile().as_text()
  back = jax.jit(backward).lower(residuals, x).compile().as_text()
  # Residuals that are operands are outputs, copied, of this program only.
  copied = sum(2 * leaf.size * leaf.dtype.itemsize for leaf in (x, *params))
  return hbm_bytes(ahead) - copied, hbm_bytes(back), saved


def rows(model, variant, chip_name, tokens):
  """Yields the table's rows for one block."""
  name, _, gate = variant.partition(':')
  activation, gated = activations.get(name), gate == 'gated'
  d, width = MODELS[model]
  f = mlp.width(width, gated)
  device = topologies.get_topology_desc(
    platform='tpu', topology_name=TOPOLOGIES[chip_name]
  ).devices[0]
  chip = tiles.CHIPS[device.device_kind]
  place = jax.sharding.SingleDeviceSharding(device)

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  operands = (
    array(tokens, d),
    tuple(array(d, f) for _ in range(1 + gated)),
    array(f, d),
    {
      k: array(*v.shape, dtype=jnp.float32)
      for k, v in activation.init().items()
    },
  )
  matrices = (2 + gated) * d * f * 2
  # x, y; x, dy, dx; weights twice, their gradients once.
  floor = 5 * tokens * d * 2 + 3 * matrices
  for implementation, saves in SAVES.items():
    for save in saves:
      block = functions(activation, gated, implementation, save, chip)
      ahead, back, saved = measure(block, operands, place)
      vmem = ''
      if implementation == 'pallas':
        cut = tiles.choose(
          tokens,
          d,
          f,
          'bfloat16',
          gated=gated,
          rowwise=activation.kind == 'rowwise',
          save=save,
          chip=chip,
        )
        vmem = f'{cut.vmem / tiles.MIB:.0f}'
      yield [
        chip_name,
        model,
        variant,
        f'{implementation} {save}',
        *(f'{n / 1e6:.0f}' for n in (ahead, back, ahead + back)),
        f'{(ahead + back) / floor:.2f}',
        f'{saved / 1e6:.0f}',
        vmem,
      ]


HEAD = ['chip', 'model', 'block', 'form', 'forward MB', 'backward MB', 'MB']
HEAD += ['x floor', 'saved MB', 'VMEM MiB']


def main():
  """Prints the table, row by row; writes it too."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--models', nargs='+', default=['base'], choices=MODELS)
  parser.add_argument('--chips', nargs='+', default=['v6e'], choices=TOPOLOGIES)
  parser.add_argument(
    '--variants',
    nargs='+',
    default=['swish:gated', 'rational', 'polyrelu', 'polynorm'],
  )
  parser.add_argument('--tokens', type=int, default=65536)
  parser.add_argument('--output', type=pathlib.Path)
  options = parser.parse_args()
  lines = []

  def say(cells):
    lines.append(f'| {" | ".join(cells)} |')
    print(lines[-1], flush=True)

  say(HEAD)
  say(['---'] * len(HEAD))
  for chip in options.chips:
    for model in options.models:
      for variant in options.variants:
        for cells in rows(model, variant, chip, options.tokens):
          say(cells)
  if options.output:
    options.output.write_text('\n'.join(lines) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
