"""The feed-forward block's implementations: bytes, cycles, memory, errors.

  python tools/kernels/bench_ffn.py [--models large] [--chips v5e] ...

  nothing            T5-base, gated swish, v6e
  --all              writes docs/kernels.md and the choices that follow from it,
                     for hours; run again, it goes on where it stopped
  --all --cached     the same, of what was compiled; --write instead of --all:
                     of what --models, ... name
  --numerics         errors against float64
  --time             times XLA's forms on this machine

STATIC figures, the default: libtpu's compiler compiles the forward and the
backward pass, without a TPU, as two programs, which is what a scan boundary
between them means; tpu_programs.py says what is counted. Nothing is run.

  forms    xla remat            plain autodiff under jax.checkpoint
           xla dots             the same, matmul outputs saved
           xla inputs, xla preactivations    save= of the XLA form
           pallas inputs, pallas preactivations    the kernels, A and B
  floor    each operand and result of the block read or written once, x and
           the weights once in each pass, nothing else
  saved    what a layer keeps for the backward pass: x and what is stored

A model whose weights do not fit a core is split over the fewest devices of
`model` with which one kernel does that stores nothing: its rows are one
device's share, and F that device's. The sums over `model` are the same in every
form and left out. With fewer (--shards 1), or with stored pre-activations,
there may be a kernel for each of several parts of F.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tpu_programs  # noqa: E402

STATIC = not {'--numerics', '--time', '--help', '-h'} & set(sys.argv)
BUNDLES = tpu_programs.prepare() if STATIC else None

import argparse  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402

import ffn_forms  # noqa: E402
import ffn_report  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from t5x_variants import chips, errors  # noqa: E402
from t5x_variants.analysis import pages  # noqa: E402
from t5x_variants.kernels import dispatch, tiles  # noqa: E402
from t5x_variants.model import mlp  # noqa: E402

TOPOLOGIES = {
  'v5e': 'v5e:2x2',
  'v6e': 'v6e:2x2',
  'v5p': 'v5p:2x2x1',
  '7x': 'tpu7x:2x2x1',
}
# emb_dim and the width of an ungated block.
MODELS = {
  'small': (512, 1536),
  'base': (768, 3072),
  'large': (1024, 4224),
  'xl': (2048, 7680),
  'xxl': (4096, 15360),
}
BLOCKS = ('swish:gated', 'rational', 'polynorm', 'polyrelu')


def programs(block, operands, place):
  """The forward and the backward pass with their arguments; bytes saved."""
  _, pull = jax.eval_shape(lambda *p: jax.vjp(block, *p), *operands)
  leaves, tree = jax.tree.flatten(pull)
  residuals = [
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    for leaf in leaves
  ]

  def forward(*operands):
    y, pull = jax.vjp(block, *operands)
    # What the caller has already is no result.
    own = {id(leaf) for leaf in jax.tree.leaves(operands)}
    return y, [r for r in jax.tree.leaves(pull) if id(r) not in own]

  def backward(residuals, dy):
    return jax.tree.unflatten(tree, residuals)(dy)

  x, *params = operands
  saved = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  saved -= sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params))
  return (forward, operands), (backward, (residuals, x)), saved


def compiled_cost(function, arguments, chip, cache, cached):
  """The cost of a program, from the cache where it was compiled before.

  None where it was not, and nothing is to be compiled.
  """
  traced = jax.jit(function).trace(*arguments)
  # The program without the places in memory and in files that it names.
  text = re.sub(r'0x[0-9a-f]+|[\w/.\-]+\.py:\d+', '', str(traced.jaxpr))
  text = f'{jax.__version__} {chip} {text}'
  path = cache / f'{hashlib.sha256(text.encode()).hexdigest()[:20]}.json'
  if not path.exists():
    if cached:
      return None
    hlo = traced.lower().compile().as_text()
    cost = tpu_programs.cost(hlo, BUNDLES, chip)
    path.write_text(json.dumps(cost._asdict()))
  return tpu_programs.Cost(**json.loads(path.read_text()))


def cut(activation, gated, d, f, tokens, save, chip) -> tiles.Tiles:
  """The kernels' tiles."""
  return tiles.choose(
    tokens,
    tiles.round_up(d, tiles.LANES),
    tiles.round_up(f, tiles.LANES),
    'bfloat16',
    gated=gated,
    rowwise=activation.kind == 'rowwise',
    save=save,
    chip=chip,
  )


def shards(activation, gated, d, f, tokens, chip) -> int:
  """The fewest devices, a power of two, whose share of F one kernel A does."""
  for ways in (1, 2, 4, 8, 16, 32):
    try:
      one = cut(activation, gated, d, f // ways, tokens, 'inputs', chip)
    except errors.UserError:
      continue
    if one.parts == 1:
      return ways
  raise errors.UserError(f'D = {d} and F = {f} fit no sharding.')


def figures(chip_name, model, name, options):
  """Yields one record a form, of one block on one chip."""
  activation, gated = ffn_forms.parse(name)
  d, width = MODELS[model]
  f, tokens = mlp.width(width, gated), options.tokens
  device = topologies.get_topology_desc(
    platform='tpu', topology_name=TOPOLOGIES[chip_name]
  ).devices[0]
  chip = chips.CHIPS[device.device_kind]
  place = jax.sharding.SingleDeviceSharding(device)
  ways = options.shards or shards(activation, gated, d, f, tokens, chip)
  f //= ways

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
  # x, y; x, dy, dx; weights twice, their gradients once.
  floor = 5 * tokens * d * 2 + 3 * (2 + gated) * d * f * 2
  for form in options.forms:
    kernel, save = form.split()
    if ways > 1 and kernel == 'pallas' and activation.kind == 'rowwise':
      continue
    block = ffn_forms.block_of(activation, gated, form, chip)
    *passes, saved = programs(block, operands, place)
    costs = [
      compiled_cost(*p, chip_name, options.cache, options.cached)
      for p in passes
    ]
    if None in costs:
      continue
    vmem = None
    if kernel == 'pallas':
      vmem = cut(activation, gated, d, f, tokens, save, chip).vmem / chips.MIB
    yield ffn_report.Record(
      chip_name, model, name, d, f, ways, form, *costs, saved, floor, vmem
    )


def numerics(options):
  """Prints each form's errors against float64."""
  rows = [('block', 'form', 'y', 'dx', 'dW, dV', 'dWo', 'dc')]
  for name in options.blocks:
    for form, off in ffn_forms.errors_of(name):
      cells = ('-' if one is None else f'{one:.1e}' for one in off)
      rows.append((name, form, *cells))
  print('Relative L2 errors, bfloat16, kernels interpreted:')
  print(pages.plain(rows))


def times(options):
  """Prints the time of XLA's forms on this machine."""
  rows = [('block', 'form', 'ms', 'temporaries MB')]
  for model in options.models:
    d, width = MODELS[model]
    for name in options.blocks:
      f = mlp.width(width, ffn_forms.parse(name)[1])
      tokens = options.tokens or 1024
      for form, spent, memory in ffn_forms.times_of(name, tokens, d, f):
        used = '-' if memory is None else f'{memory:.0f}'
        rows.append((name, form, f'{spent:.1f}', used))
  print(f'Measured, {jax.devices()[0].device_kind}, forward and backward pass:')
  print(pages.plain(rows))


def static(options):
  """Prints the static figures; writes them where all are asked for."""
  options.tokens = options.tokens or 65536
  options.cache.mkdir(parents=True, exist_ok=True)
  records = []
  for chip in options.chips:
    for model in options.models:
      for name in options.blocks:
        found = list(figures(chip, model, name, options))
        records += found
        if found:
          print(ffn_report.table(found) + '\n', flush=True)
  if options.write:
    package = pathlib.Path(dispatch.__file__).parent
    ffn_report.write(records, ROOT / 'docs', package / 'choices.json')


def main():
  """Reads the command and runs what it names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--all', action='store_true', help='every model, v5e and v6e; --write')
  add('--write', action='store_true', help='write docs/kernels.md')
  add('--cached', action='store_true', help='compile nothing')
  add('--numerics', action='store_true', help='errors against float64')
  add('--time', action='store_true', help='times on this machine')
  add('--models', nargs='+', default=['base'], choices=MODELS)
  add('--chips', nargs='+', default=['v6e'], choices=TOPOLOGIES)
  add('--blocks', nargs='+', default=['swish:gated'], metavar='NAME[:gated]')
  add('--forms', nargs='+', default=ffn_forms.FORMS, choices=ffn_forms.FORMS)
  add('--shards', type=int, help='devices that F is split over')
  add('--tokens', type=int, help='rows of x; 65536, or 1024 to time')
  add('--cache', type=pathlib.Path, default=ROOT / 'runs' / 'bench_ffn')
  options = parser.parse_args()
  if options.all:
    options.models, options.chips = tuple(MODELS), ('v6e', 'v5e')
    options.blocks, options.write = BLOCKS, True
  for choice, run in (('numerics', numerics), ('time', times)):
    if getattr(options, choice):
      run(options)
      return
  static(options)


if __name__ == '__main__':
  sys.exit(errors.exit_status(main))
