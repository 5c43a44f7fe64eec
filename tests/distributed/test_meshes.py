"""The step on every mesh: one device's loss and gradients, no gather beyond.

The full product, 15 variants x 5 meshes x scan x remat x microbatches:

  bash tools/test.sh -m slow tests/distributed/test_meshes.py
"""

import functools
import itertools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configs import mlp_block, t5_config
from flax import linen as nn
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from quick_jit import jit

from t5x_variants import activations
from t5x_variants.activations import polycom, rational
from t5x_variants.distributed import partitioning
from t5x_variants.model import network, parameters
from t5x_variants.training import train_state, train_step

B, INPUTS, TARGETS, VOCAB, D, F = 16, 12, 8, 80, 16, 48
VARIANTS = {
  'relu': ('relu', False),
  'gelu': ('gelu', False),
  'swish': ('swish', False),
  'squared_relu': ('squared_relu', False),
  'xielu': ('xielu', False),
  'glu': ('sigmoid', True),
  'bilinear': ('linear', True),
  'reglu': ('relu', True),
  'geglu': ('gelu', True),
  'swiglu': ('swish', True),
  'rational': (rational.rational(), False),
  'rational_glu': (rational.rational(), True),
  'polyrelu': (polycom.polyrelu(), False),
  'polynorm': (polycom.polynorm(), False),
  'polynorm_glu': (polycom.polynorm(), True),
}
# Data axis x model axis; whether parameters lie over `data` as well.
MESHES = {
  '1x8': (8, 1),
  '2x4': (4, 1),
  '4x2': (2, 1),
  '8x1': (1, 1),
  'fully_sharded': (2, 2),
}
# The dearest to get right; test_train_step has two more, with Adafactor.
COVERING = [
  ('rational', '4x2', True, 'full', 2),
  ('polynorm_glu', 'fully_sharded', True, 'minimal', 1),
]


def test_these_are_the_variants_of_the_gin_files():
  folder = pathlib.Path(__file__).parents[2] / 'gin/variants'
  assert set(VARIANTS) == {path.stem for path in folder.glob('*.gin')}


def make_model(variant, scan=False, remat='none'):
  activation, gated = VARIANTS[variant]
  return network.Transformer(
    t5_config(
      vocab_size=VOCAB,
      emb_dim=D,
      num_heads=8,
      head_dim=4,
      mlp_dim=F,
      num_encoder_layers=1,
      num_decoder_layers=1,
      dropout_rate=0.0,
      activation=activation,
      gated=gated,
      scan_layers=scan,
      remat_policy=remat,
    )
  )


@functools.cache
def batch():
  """Packed rows of two examples and some padding."""
  rng = np.random.default_rng(0)
  found = {}
  for name, length in (('encoder', INPUTS), ('decoder', TARGETS)):
    ids = np.repeat([[1, 1, 2, 2]], B, axis=0).repeat(length // 4, axis=1)
    ids[::3, -2:] = 0
    tokens = rng.integers(1, VOCAB, (B, length)) * (ids > 0)
    found[f'{name}_segment_ids'] = ids
    found[f'{name}_positions'] = np.tile(np.arange(length // 2), (B, 2))
    kind = 'input' if name == 'encoder' else 'target'
    found[f'{name}_{kind}_tokens'] = tokens
  targets = found['decoder_target_tokens']
  found['decoder_input_tokens'] = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  found['decoder_loss_weights'] = targets > 0
  return {name: value.astype(np.int32) for name, value in found.items()}


@functools.cache
def params(variant):
  """Of unscanned layers; coefficients and norms are no longer as they began."""
  shapes, _ = parameters.shapes_and_axes(make_model(variant))
  rng = np.random.default_rng(1)

  def value(path, leaf):
    noise = rng.normal(size=leaf.shape) / math.sqrt(max(leaf.shape[0], 1))
    name = jax.tree_util.keystr(path)
    if 'activation' in name:
      key = path[-1].key
      init = activations.get(VARIANTS[variant][0]).init()[key]
      return np.asarray(init + 0.05 * noise, np.float32)
    return np.asarray(noise + ('scale' in name), np.float32)

  return jax.tree_util.tree_map_with_path(value, shapes)


def step_of(model, parts=1):
  """Parameters and batch to gradients, as SGD of rate 1 shows them; sums."""
  tx = optax.sgd(1.0)
  step = train_step.make_train_step(
    model, tx, random_seed=0, num_microbatches=parts, z_loss=1e-3
  )

  def run(params, batch):
    state, sums = step(train_state.start(tx, params), batch)
    return jax.tree.map(jnp.subtract, params, state.params), sums

  return run


@functools.cache
def on_one_device(variant):
  run = jit(step_of(make_model(variant)))
  return jax.device_get(run(params(variant), batch()))


def compiled(variant, mesh_name, scan, remat, parts):
  """The step on a mesh and its arguments; the parameters' shapes and axes."""
  model_axis, dims = MESHES[mesh_name]
  mesh = partitioning.make_mesh(model_axis)
  rules = partitioning.standard_logical_axis_rules(dims)
  model = make_model(variant, scan, remat)
  shapes, axes = parameters.shapes_and_axes(model)
  where = partitioning.param_shardings(shapes, axes, mesh, rules)
  values = params(variant)
  arguments = (
    jax.device_put(_as(values, shapes), where),
    partitioning.global_batch(batch(), mesh),
  )
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    run = jit(step_of(model, parts), out_shardings=(where, None))
    return run.lower(*arguments).compile(), arguments, shapes, axes


def _as(tree, shapes):
  """Scanned where the shapes are: the axis of layers stands anywhere."""
  flat, wanted = (
    traverse_util.flatten_dict(tree),
    traverse_util.flatten_dict(shapes),
  )
  found = {}
  for path, value in flat.items():
    if path not in wanted:
      path = tuple('layers' if key == 'layers_0' else key for key in path)
    found[path] = np.reshape(value, wanted[path].shape)
  assert found.keys() == wanted.keys()
  return traverse_util.unflatten_dict(found)


def close(got, wanted, tolerance=1e-5):
  """Every leaf within a tolerance of the largest number of the leaf."""

  def check(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(1e-3, np.abs(b).max())
    assert np.abs(a - b).max() <= tolerance * scale, (
      jax.tree_util.keystr(path),
      np.abs(a - b).max() / scale,
    )

  jax.tree_util.tree_map_with_path(check, got, wanted)


def gathers(text):
  """Of each all-gather of a compiled text: what it is for, dtype and shape."""
  return {
    (name, kind, tuple(map(int, shape.split(','))))
    for kind, shape, name in re.findall(
      r'= (\w+)\[([\d,]+)\]\S* all-gather(?:-start)?\(.*op_name="([^"]*)"', text
    )
  }


def is_expected(gather, mesh_name, shapes, axes, parts):
  """The table: all that may be gathered, by mesh."""
  name, kind, shape = gather
  model_axis, dims = MESHES[mesh_name]
  mesh = partitioning.make_mesh(model_axis)
  rows = B // mesh.shape['data'] // parts
  # Accuracy: each part of the vocabulary's largest logit, and where it is.
  if name.endswith('/reduce') and model_axis > 1:
    return kind in ('f32', 's32') and shape == (rows, TARGETS, model_axis)
  if dims == 1:
    return False
  # Fully sharded: the parameters, where they are used, over `data`; and the
  # lookup in an embedding that lies over both axes.
  if 'token_embedder' in name:
    return True
  rules = partitioning.standard_logical_axis_rules(1)
  where = partitioning.param_shardings(shapes, axes, mesh, rules)
  local = jax.tree.map(lambda x, s: s.shard_shape(x.shape), shapes, where)
  sizes = {math.prod(s) for s in traverse_util.flatten_dict(local).values()}
  return kind == 'f32' and math.prod(shape) in sizes


def check(variant, mesh_name, scan, remat, parts):
  run, arguments, shapes, axes = compiled(
    variant, mesh_name, scan, remat, parts
  )
  gradients, sums = jax.device_get(run(*arguments))
  wanted, wanted_sums = on_one_device(variant)
  close(gradients, _as(wanted, shapes))
  close(sums, wanted_sums)
  unexpected = {
    gather
    for gather in gathers(run.as_text())
    if not is_expected(gather, mesh_name, shapes, axes, parts)
  }
  assert not unexpected


@pytest.mark.parametrize('variant, mesh, scan, remat, parts', COVERING)
def test_a_mesh_gives_one_device_s_step(variant, mesh, scan, remat, parts):
  check(variant, mesh, scan, remat, parts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_mesh_gives_one_device_s_step(variant, mesh):
  for switches in itertools.product(
    (False, True), ('none', 'minimal', 'full'), (1, 2)
  ):
    check(variant, mesh, *switches)
  jax.clear_caches()


def block_on_a_mesh(variant, model_axis):
  """A feed-forward block's values, gradients and text; alone, then split."""
  activation, gated = VARIANTS[variant]
  block = mlp_block(F, activation=activation, gated=gated)
  x = np.random.default_rng(2).normal(size=(4, 6, D)).astype(np.float32)
  tree = params(variant)['encoder']['layers_0']['mlp']

  def value(tree, x):
    y = block.apply({'params': tree}, x, deterministic=True)
    return jnp.sum(jnp.sin(y)), y

  def run(*arguments):
    (_, y), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(
      *arguments
    )
    return y, gradients

  wanted = jax.device_get(jit(run)(tree, x))
  mesh = partitioning.make_mesh(model_axis)

  def place(path, leaf):
    name = path[0].key
    spec = PartitionSpec()
    if name.startswith('wi'):
      spec = PartitionSpec(None, 'model')
    elif name == 'wo':
      spec = PartitionSpec('model')
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  tree = jax.tree_util.tree_map_with_path(place, tree)
  x = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  rules = partitioning.standard_logical_axis_rules()
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    run = jit(run).lower(tree, x).compile()
  return wanted, jax.device_get(run(tree, x)), run.as_text()


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_block_split_over_the_model_axis(variant):
  """The unsplit block's values; nothing of it is gathered."""
  wanted, got, text = block_on_a_mesh(variant, 4)
  close(got, wanted)
  assert not re.search('all-gather|all-to-all|collective-permute', text)


@pytest.mark.parametrize('variant', ['polynorm', 'polynorm_glu'])
def test_polynorm_s_statistics_are_three_numbers_a_token(variant):
  """In one collective forward and one backward, over the model axis."""
  _, _, text = block_on_a_mesh(variant, 4)
  tokens = 4 * 6 // 2
  found = []
  for line in text.splitlines():
    one = re.search(r'= (.*?) all-reduce(?:-start)?\(', line)
    if one:
      found.append(re.findall(r'f32\[(?:12|12,1|2,6|2,6,1)\]', one[1]))
  assert tokens == 12
  assert sorted(map(len, filter(None, found))) == [3, 3]
