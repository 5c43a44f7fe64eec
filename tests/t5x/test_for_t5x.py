"""What t5x demands of the network, and what its gin files take from here."""

import dataclasses
import functools
import itertools
import math
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import freeze, unfreeze
from flax.linen import partitioning
from jax.sharding import PartitionSpec
from quick_jit import jit
from t5x_cases import SIZES, B, K, L, batch, model, randomised

from t5x_variants import activations, errors, for_t5x
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import vocabularies
from t5x_variants.model import parameters
from t5x_variants.training import optimizer, train_state, train_step

# The calls that t5x's EncoderDecoderModel makes; only shapes are computed.


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('dtype', [jnp.int32, jnp.float32])
def test_initialisation_as_t5x_calls_it(packed, dtype):
  """Its evaluation leaves the tokens' type to a default, which is float32."""
  extra = [k for k in batch() if k.endswith(('_positions', '_segment_ids'))]
  init = functools.partial(model().init, decode=False, enable_dropout=False)
  variables = jax.eval_shape(
    init,
    jax.random.key(0),
    jnp.ones((B, K), dtype),
    jnp.ones((B, L), dtype),
    jnp.ones((B, L), dtype),
    **{k: jnp.ones_like(batch()[k]) if packed else None for k in extra},
  )
  # Anything besides would be a state that t5x has to be told of.
  assert set(variables) == {'params', 'params_axes'}
  names = partitioning.get_axis_names(variables['params_axes'])
  shapes = jax.tree.map(jnp.ndim, variables['params'])
  is_spec = functools.partial(
    jax.tree.map, len, is_leaf=lambda x: isinstance(x, PartitionSpec)
  )
  assert is_spec(unfreeze(names)) == unfreeze(shapes)


def test_the_axes_are_those_that_t5x_has_rules_for():
  with_factor_rules = {'vocab', 'embed', 'mlp', 'heads', 'joined_kv', 'layers'}
  with_factor_rules |= {'relpos_buckets', 'mlp_activations'}
  _, axes = parameters.shapes_and_axes(
    model(activation='polynorm', scan_layers=True)
  )
  found = set(itertools.chain(*traverse_util.flatten_dict(axes).values()))
  assert found == with_factor_rules


@pytest.mark.parametrize('scan', [False, True])
def test_decoding_as_t5x_calls_it(scan):
  """Encoding, the cache, one token of every beam; `scan_layers` is read."""
  module, beams = model(scan_layers=scan), 3
  assert module.scan_layers == scan
  params, _ = parameters.shapes_and_axes(module)

  def decode(params):
    apply = functools.partial(
      module.apply, enable_dropout=False, mutable=['cache']
    )
    tokens = {
      'encoder_input_tokens': jnp.ones((B, K), jnp.int32),
      'decoder_input_tokens': jnp.ones((B, L), jnp.int32),
      'decoder_target_tokens': jnp.ones((B, L), jnp.int32),
    }
    _, variables = apply({'params': params}, **tokens, decode=True)
    axis = int(scan)

    def expand(path, leaf):
      if path[-1].key == 'cache_index':
        return leaf
      assert path[-1].key in ('cached_key', 'cached_value')
      assert leaf.shape[axis] == B
      return jnp.repeat(leaf, beams, axis)

    cache = jax.tree_util.tree_map_with_path(expand, variables['cache'])
    encoded = module.apply(
      {'params': params},
      tokens['encoder_input_tokens'],
      enable_dropout=False,
      method=module.encode,
    )
    ids = jnp.ones((B * beams, 1), jnp.int32)
    logits, variables = apply(
      {'params': params, 'cache': cache},
      jnp.repeat(encoded, beams, 0),
      jnp.ones((B * beams, K), jnp.int32),
      ids,
      ids,
      decode=True,
      max_decode_length=L,
      method=module.decode,
    )
    return logits, cache, variables['cache']

  logits, before, after = jax.eval_shape(decode, params)
  assert logits.shape == (B * beams, 1, SIZES['vocab_size'])
  assert before == after


# Our activations inside a network of t5x's kind.


class Block(nn.Module):
  """What t5x's block does with its activations."""

  activations: tuple

  @nn.compact
  def __call__(self, x):
    branches = []
    for index, activation in enumerate(self.activations):
      y = nn.Dense(16, use_bias=False, name=f'wi_{index}')(x)
      branches.append(y if activation == 'linear' else activation(y))
    return functools.reduce(operator.mul, branches)


class Stack(nn.Module):
  """Two of these blocks, from one configuration."""

  activations: tuple

  @nn.compact
  def __call__(self, x):
    for index in range(2):
      x = Block(self.activations, name=f'layers_{index}')(x)
    return x


@pytest.mark.parametrize('name', ['rational', 'polynorm', 'swish'])
def test_each_layer_of_a_foreign_network_has_its_coefficients(name):
  stack = Stack(for_t5x.mlp_activations(name, True))
  x = jnp.ones((2, 16)) * jnp.linspace(-1, 1, 16)
  variables = stack.init(jax.random.key(0), x)
  record = activations.get(name)
  for layer in ('layers_0', 'layers_1'):
    found = variables['params'][layer].get('activation', {})
    assert jax.tree.map(np.shape, dict(found)) == {
      k: v.shape for k, v in record.init().items()
    }
  params = variables['params']
  y = x
  for layer in ('layers_0', 'layers_1'):
    z, u = (y @ params[layer][f'wi_{i}']['kernel'] for i in (0, 1))
    y = record.fn(z, params[layer].get('activation', {})) * u
  np.testing.assert_allclose(stack.apply(variables, x), y, rtol=1e-5, atol=1e-6)


def test_activations_that_cannot_be():
  with pytest.raises(errors.UserError, match=r'did you mean .rational'):
    for_t5x.mlp_activations('rationall', True)
  noisy = activations.rational.rational(version='D')
  with pytest.raises(errors.UserError, match=r'noise.*gin/t5x/model.gin'):
    for_t5x.mlp_activations(noisy, True)
  assert len(for_t5x.mlp_activations('gelu', False)) == 1


def test_an_axis_without_a_rule_is_named_and_so_is_the_cure():
  rules = for_t5x._FactorRules({'embed': 2, 'mlp_activations': 3})
  assert rules['embed'] == 2
  with pytest.raises(errors.UserError) as caught:
    rules['degrees']
  for part in ("'degrees'", "'mlp_activations'", 'for_t5x.factor_rules.more'):
    assert part in str(caught.value)


# Meshes.


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh is made of."""

  coords: tuple
  core_on_chip: int
  process_index: int
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU'


def slice_of(x, y, z, cores, host=(2, 2, 1)):
  """The devices of a slice, in hosts of 2 x 2 chips."""
  hosts = [max(1, n // h) for n, h in zip((x, y, z), host, strict=True)]
  found = []
  for i, j, k, c in itertools.product(*map(range, (x, y, z, cores))):
    a, b, d = (p // h for p, h in zip((i, j, k), host, strict=True))
    process = (d * hosts[1] + b) * hosts[0] + a
    found.append(Device((i, j, k), c, process, len(found)))
  return found


SLICES = {
  'v5e': (2, 4, 1, 1),
  'v5e-256': (16, 16, 1, 1),
  'v5p': (2, 2, 4, 1),
  'v6e': (4, 4, 1, 1),
  '7x': (2, 2, 4, 2),
}
CHOICES = {'v5e': 4, 'v5e-256': 9, 'v5p': 5, 'v6e': 5, '7x': 5}


@pytest.mark.parametrize('name', SLICES)
def test_submeshes_divide_every_slice(name):
  bounds, seen = SLICES[name], 0
  for size in (2**n for n in range(9)):
    if size > math.prod(bounds):
      break
    found = for_t5x.submesh(size, slice_of(*bounds))
    assert math.prod(found) == size
    assert not any(b % f for b, f in zip(bounds, found, strict=True))
    # Neighbours: no side is more than twice another that could still grow.
    assert found[3] == (bounds[3] if size > 1 else 1)
    growing = [f for f, b in zip(found, bounds, strict=True) if f < b]
    assert not growing or max(found[:3]) <= 2 * max(growing)
    seen += 1
  assert seen >= CHOICES[name]


def test_a_submesh_that_cannot_be():
  for size, devices in (
    (3, slice_of(2, 4, 1, 1)),
    (16, slice_of(2, 2, 1, 2)),
    *((size, cpus(2, 4)) for size in (0, 3, 6, 16, 2.0, None, '2')),
  ):
    words = rf'MODEL_AXIS_SIZE is {size!r}: .*\[1, 2, 4, 8\]'
    with pytest.raises(errors.UserError, match=words):
      for_t5x.submesh(size, devices)


def cpus(processes, each):
  """The devices of several processes without an accelerator."""
  return [
    Device(None, 0, process, each * process + n, platform='cpu')
    for process in range(processes)
    for n in range(each)
  ]


@pytest.mark.parametrize(
  'size, submesh',
  [(1, (1, 1, 1, 1)), (2, (1, 2, 1, 1)), (4, (1, 4, 1, 1)), (8, (2, 4, 1, 1))],
)
def test_without_a_tpu_devices_of_one_process_come_first(size, submesh):
  assert for_t5x.submesh(size, cpus(2, 4)) == submesh


def test_a_gpu_s_mesh_is_t5x_s_own(monkeypatch):
  gpus = [dataclasses.replace(one, platform='gpu') for one in cpus(1, 4)]
  monkeypatch.setattr(jax, 'devices', lambda: gpus)
  assert for_t5x.submesh(2) is None and for_t5x.num_partitions(2) == 2
  with pytest.raises(errors.UserError, match=r'is 3: .*\[1, 2, 4\]'):
    for_t5x.num_partitions(3)


# Tasks.


@pytest.fixture
def task():
  import seqio

  name = tasks.span_corruption(
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files: None, ['train']
    ),
    vocabulary=vocabularies.byte(),
    name='of_a_test_for_t5x',
  )
  yield name
  seqio.TaskRegistry.remove(name)


def test_a_model_gets_its_task_s_vocabulary(task):
  for feature in ('inputs', 'targets'):
    assert tasks.vocabulary(task, feature, 384) == vocabularies.byte()
  for arguments, words in (
    ((task, 'inputs', 256), r'359 ids.*VOCAB_SIZE=256'),
    ((task, 'sources'), 'no feature .sources.'),
    ((None, 'inputs'), r'prepared.*gin/data/embedded'),
    (('nothing', 'inputs'), r'not registered.*gin/data'),
  ):
    with pytest.raises(errors.UserError, match=words):
      tasks.vocabulary(*arguments)


def test_a_task_s_metric_is_its_loss(task):
  import seqio

  found = seqio.get_mixture_or_task(task)
  lengths = [
    found.postprocess_fn('', example={'targets': np.ones(n)}, is_target=True)
    for n in (3, 5)
  ]
  metrics = [fn(lengths, scores=[-4.0, -8.0]) for fn in found.metric_fns]
  assert metrics == [{'nats_per_token': 1.5, 'target_tokens': 8}]
  assert len(found.score_metric_fns) == 1 and not found.predict_metric_fns


# With t5x itself.


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'name, gated, microbatches', [('rational', True, 1), ('polynorm', False, 2)]
)
def test_a_step_is_a_step_of_t5x(name, gated, microbatches, t5x_module):
  """Loss and updated parameters, with Adafactor, z-loss and smoothing."""
  models, trainer, states, adafactor = (
    t5x_module(f't5x.{m}')
    for m in ('models', 'trainer', 'train_state', 'adafactor')
  )
  module, rate = model(activation=name, gated=gated), 0.02
  losses = {'label_smoothing': 0.1, 'z_loss': 1e-3}
  params = randomised(module)
  _, axes = parameters.shapes_and_axes(module)
  tx = optimizer.adafactor(axes, lambda step: rate)
  ours = train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    sums=train_state.zero_sums(),
  )
  our_step = jit(
    train_step.make_train_step(
      module, tx, random_seed=0, num_microbatches=microbatches, **losses
    )
  )
  their_model = models.EncoderDecoderModel(
    module=module,
    input_vocabulary=vocabularies.byte(),
    output_vocabulary=vocabularies.byte(),
    optimizer_def=adafactor.Adafactor(
      decay_rate=0.8, logical_factor_rules=for_t5x.factor_rules()
    ),
    **losses,
  )
  variables = jax.eval_shape(
    functools.partial(
      their_model.get_initial_variables,
      input_shapes={k: v.shape for k, v in batch().items()},
    ),
    jax.random.key(0),
  )
  theirs = states.FlaxOptimTrainState.create(
    their_model.optimizer_def, freeze(unfreeze(variables) | {'params': params})
  )
  their_step = jit(
    functools.partial(
      trainer.train_with_lr,
      model=their_model,
      learning_rate=rate,
      dropout_rng=jax.random.key(0),
      num_microbatches=microbatches,
    )
  )
  # With smoothing, as it is minimised; the sums of a record are without.
  objective = jit(functools.partial(train_step.forward, module, **losses))(
    params, batch()
  )[0]
  for step in range(2):
    ours, sums = our_step(ours, batch())
    theirs, metrics = their_step(theirs, batch())
    if step == 0:
      np.testing.assert_allclose(objective, metrics['loss'].total, rtol=1e-5)
    np.testing.assert_allclose(
      sums['z_loss'], metrics['z_loss'].total, rtol=1e-5
    )
  differences = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), ours.params, unfreeze(theirs.params)
  )
  print('largest difference:', max(jax.tree.leaves(differences)))
  assert max(jax.tree.leaves(differences)) < 1e-5, differences
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours.params, params)
  assert min(jax.tree.leaves(moved)) > 1e-4, moved


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'name, gated', [('rational', True), ('polynorm', False)]
)
def test_t5x_s_own_network_with_our_activations(name, gated, t5x_module):
  """The same tree and the same logits as ours."""
  theirs = t5x_module('t5x.examples.t5.network')
  ours = model(activation=name, gated=gated)
  their = theirs.Transformer(
    theirs.T5Config(
      **SIZES, mlp_activations=for_t5x.mlp_activations(name, gated)
    )
  )
  params = randomised(ours)
  init = functools.partial(their.init, enable_dropout=False)
  rows = batch()
  names = ('encoder_input', 'decoder_input', 'decoder_target')
  tokens = [rows[f'{name}_tokens'] for name in names]
  variables = unfreeze(jax.eval_shape(init, jax.random.key(0), *tokens))
  assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(
    jnp.shape, params
  )
  _, axes = parameters.shapes_and_axes(ours)
  their_axes = partitioning.get_axis_names(variables['params_axes'])
  assert jax.tree.map(
    tuple,
    unfreeze(their_axes),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  ) == dict(axes)
  one, two = (
    jit(functools.partial(m.apply, enable_dropout=False))(
      {'params': params}, *tokens
    )
    for m in (ours, their)
  )
  np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('size', [1, 2, 4, 8])
def test_t5x_s_mesh_on_a_cpu_has_the_size_that_was_asked_for(size, t5x_module):
  partitioner = t5x_module('t5x.partitioning').PjitPartitioner(
    num_partitions=for_t5x.num_partitions(size),
    model_parallel_submesh=for_t5x.submesh(size),
  )
  assert dict(partitioner.mesh.shape) == {'data': 8 // size, 'model': size}
  assert set(partitioner.mesh.devices.flat) == set(jax.devices())
  assert partitioner.get_data_layout(16).num_shards == 1


@pytest.mark.filterwarnings('ignore')
def test_t5x_makes_meshes_of_our_submeshes(t5x_module):
  theirs = t5x_module('t5x.partitioning')
  for name, bounds in SLICES.items():
    devices = slice_of(*bounds)
    local = [d for d in devices if d.process_index == 0]
    for size in (1, 2, 4, 8):
      submesh = for_t5x.submesh(size, devices)
      mesh = theirs.get_mesh(submesh, devices, local)
      assert dict(mesh.shape) == {'data': len(devices) // size, 'model': size}
      assert set(mesh.devices.flat) == set(devices), name


def test_factor_rules_are_t5x_s_and_one_s_own(t5x_module):
  theirs = t5x_module('t5x.adafactor')
  standard = theirs.standard_logical_factor_rules()
  assert dict(for_t5x.factor_rules()) == dict(standard)
  more = for_t5x.factor_rules({'degrees': 'none'})
  assert more['degrees'] == 'none' and more['embed'] == standard['embed']
  with pytest.raises(errors.UserError, match=r"'degrees' is 'some'.*'row'"):
    for_t5x.factor_rules({'degrees': 'some'})
  definition = theirs.Adafactor(logical_factor_rules=for_t5x.factor_rules())
  with pytest.raises(errors.UserError, match='mlp_activations'):
    definition.set_param_axes({'a': PartitionSpec('degrees')})
