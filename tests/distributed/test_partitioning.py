"""Where parameters, optimizer state and batches lie on eight devices."""

import types

import jax
import numpy as np
import optax
import pytest
from configs import t5_config
from flax import linen as nn
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from quick_jit import jit

from t5x_variants import errors
from t5x_variants.distributed import partitioning
from t5x_variants.model import layers, network, parameters
from t5x_variants.training import optimizer, train_state

SIZES = {
  'vocab_size': 128,
  'emb_dim': 64,
  'num_heads': 8,
  'head_dim': 8,
  'mlp_dim': 128,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
}


def model(**sizes):
  config = t5_config(
    **SIZES | {'activation': 'rational', 'scan_layers': True} | sizes
  )
  return network.Transformer(config)


def layout(mesh, dims=1, **sizes):
  """Shapes, axes and shardings of the parameters."""
  shapes, axes = parameters.shapes_and_axes(model(**sizes))
  rules = partitioning.standard_logical_axis_rules(dims)
  found = partitioning.param_shardings(shapes, axes, mesh, rules)
  return shapes, axes, found


def specs(mesh, dims=1, **sizes):
  shardings = layout(mesh, dims, **sizes)[-1]
  return {
    path: tuple(sharding.spec)
    for path, sharding in traverse_util.flatten_dict(shardings, sep='/').items()
  }


@pytest.mark.parametrize('size, shape', [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_a_mesh_holds_all_devices(size, shape):
  mesh = partitioning.make_mesh(size)
  assert dict(mesh.shape) == dict(zip(('data', 'model'), shape, strict=True))
  assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_of_some_devices():
  assert partitioning.make_mesh(2, 4).shape == {'data': 4, 'model': 2}
  few = partitioning.make_mesh(2, devices=jax.devices()[:4])
  assert few.shape == {'data': 2, 'model': 2}


def test_parameters_lie_where_the_rules_say():
  found = specs(partitioning.make_mesh(4))
  assert found['token_embedder/embedding'] == ('model', None)
  assert found['decoder/logits_dense/kernel'] == (None, 'model')
  assert found['encoder/layers/mlp/wi_0/kernel'] == (None, None, 'model')
  assert found['encoder/layers/mlp/wo/kernel'] == (None, 'model', None)
  for name in ('query', 'key', 'value'):
    path = f'decoder/layers/self_attention/{name}/kernel'
    assert found[path] == (None, None, 'model')
  assert found['decoder/layers/self_attention/out/kernel'] == (
    (None, 'model', None)
  )
  assert found['encoder/relpos_bias/rel_embedding'] == ('model', None)
  for path, spec in found.items():
    if 'norm' in path or 'activation' in path:
      assert not any(spec), path


def test_fully_sharded_parameters_lie_on_both_axes():
  found = specs(partitioning.make_mesh(4), dims=2)
  assert found['token_embedder/embedding'] == ('model', 'data')
  assert found['encoder/layers/mlp/wi_0/kernel'] == (None, 'data', 'model')
  assert found['encoder/layers/mlp/wo/kernel'] == (None, 'model', 'data')
  assert found['encoder/encoder_norm/scale'] == ('data',)
  assert not any(found['encoder/layers/mlp/activation/numerator'])


def shard(rules, width=16):
  return partitioning.param_shardings(
    {'w': jax.ShapeDtypeStruct((8, width), np.float32)},
    {'w': ('embed', 'mlp')},
    partitioning.make_mesh(4),
    rules,
  )['w'].spec


def test_rules_of_one_s_own():
  one = shard([('embed', 'model'), ('mlp', None)])
  assert tuple(one) == ('model', None)
  both = shard([('mlp', ('data', 'model')), ('embed', None)])
  assert tuple(both) == (None, ('data', 'model'))


def test_an_optimizer_s_moments_lie_with_their_parameter():
  mesh = partitioning.make_mesh(4)
  shapes, _, shardings = layout(mesh, 2)
  tx = optax.adam(1e-3)
  state = jax.eval_shape(tx.init, shapes)
  found = partitioning.state_shardings(state, shapes, shardings, mesh)
  assert found[0].mu == shardings and found[0].nu == shardings
  assert found[0].count.spec == PartitionSpec()


def test_the_train_state_s_shardings():
  """Of Adafactor with a group of its own for the coefficients."""
  mesh = partitioning.make_mesh(4)
  shapes, axes, shardings = layout(mesh)
  tx = optimizer.adafactor(
    axes,
    lambda step: 0.1,
    min_dim_size_to_factor=64,
    coefficients=optimizer.coefficient_adam(1e-3),
  )
  state = jax.eval_shape(
    lambda key: train_state.create(model(), tx, key), jax.random.key(0)
  )
  found = partitioning.state_shardings(state, shapes, shardings, mesh)
  assert found.params == shardings
  sizes = traverse_util.flatten_dict(shapes)
  for (path, where), leaf in zip(
    jax.tree_util.tree_leaves_with_path(found.opt_state),
    jax.tree.leaves(state.opt_state),
    strict=True,
  ):
    assert isinstance(where, NamedSharding)
    if any(where.spec):
      keys = tuple(k.key for k in path if hasattr(k, 'key'))
      owner = next(p for p in sizes if keys[-len(p) :] == p)
      assert sizes[owner].shape == leaf.shape
  # V of a matrix whose sides are factored is rows and columns: replicated.
  # That of the relative positions is whole, and lies with them.
  text = {
    jax.tree_util.keystr(path): tuple(where.spec)
    for path, where in jax.tree_util.tree_leaves_with_path(found.opt_state)
  }
  whole = [k for k in text if 'rel_embedding' in k and '.v[' in k]
  assert whole and all(text[k] == ('model', None) for k in whole)


def test_a_state_made_sharded_is_the_state_made_whole():
  mesh = partitioning.make_mesh(4)
  shapes, axes, shardings = layout(mesh, 2)
  tx = optimizer.adafactor(axes, lambda step: 0.1)

  def create(key):
    return train_state.create(model(), tx, key)

  key = jax.random.key(0)
  where = partitioning.state_shardings(
    jax.eval_shape(create, key), shapes, shardings, mesh
  )
  with jax.set_mesh(mesh):
    state = jit(create, out_shardings=where)(key)
  whole = jit(create)(key)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    jax.device_get(state),
    jax.device_get(whole),
  )
  kernel = state.params['encoder']['layers']['mlp']['wi_0']['kernel']
  parts = {shard.data.shape for shard in kernel.addressable_shards}
  assert parts == {(2, 64 // 2, 128 // 4)}


def test_a_batch_s_rows_are_spread_over_data_alone():
  mesh = partitioning.make_mesh(2)
  rows = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
  batch = partitioning.global_batch({'tokens': rows}, mesh)
  assert batch['tokens'].sharding.spec == partitioning.BATCH_SPEC
  np.testing.assert_array_equal(batch['tokens'], rows)
  for shard in batch['tokens'].addressable_shards:
    assert shard.data.shape == (4, 3)
    np.testing.assert_array_equal(shard.data, rows[shard.index])


class Device:
  """Stands in for a device of a process."""

  def __init__(self, process_index):
    self.process_index = process_index


def shard_of(rows, process):
  """The shard of a process in a mesh written as the processes of its rows."""
  devices = np.array([[Device(p) for p in row] for row in rows])
  mesh = types.SimpleNamespace(
    devices=devices,
    axis_names=('data', 'model'),
    shape=dict(zip(('data', 'model'), devices.shape, strict=True)),
    local_devices=[None] * (devices.size // len(set(np.ravel(rows)))),
  )
  found = partitioning.data_shard(mesh, process)
  return found.index, found.count, found.first


def test_each_process_reads_the_rows_of_its_devices():
  one_each = [[0], [0], [1], [1]]
  assert [shard_of(one_each, p) for p in (0, 1)] == [(0, 2, True), (1, 2, True)]
  # A model axis of two hosts' devices: both need the same rows, one saves.
  wide = [[0, 0, 1, 1], [2, 2, 3, 3]]
  assert [shard_of(wide, p) for p in range(4)] == [
    (0, 2, True),
    (0, 2, False),
    (1, 2, True),
    (1, 2, False),
  ]
  # As links run on a slice: rows of a host need not stand together.
  ring = [[0], [1], [1], [0]]
  assert [shard_of(ring, p) for p in (0, 1)] == [(0, 2, True), (1, 2, True)]


def constrain(rules):
  """A rule for activations, followed in a program."""
  with jax.set_mesh(partitioning.make_mesh(4)), nn.logical_axis_rules(rules):
    jax.jit(lambda x: layers.constrain(x, 'batch', 'length', 'embed')).lower(
      np.zeros((2, 6, 3))
    )


def check(batch, parts=1):
  partitioning.check_batch(batch, partitioning.make_mesh(), parts)


RULES = partitioning.standard_logical_axis_rules
W = "Parameter w has the logical axes ('embed', 'mlp')"


@pytest.mark.parametrize(
  'function, arguments, words',
  [
    *(
      (partitioning.make_mesh, (n,), [f'is {n},', '8 dev', '[1, 2, 4, 8]'])
      for n in (0, -1, 3, 16)
    ),
    (
      partitioning.make_mesh,
      (2, 8),
      ['a mesh of 16 devices, but there are 8', 'DATA_AXIS_SIZE=4'],
    ),
    (check, (12,), ['BATCH_SIZE is 12', 'multiple of 8, for example 16']),
    (check, (8, 2), ['NUM_MICROBATCHES is 2', 'of 16, for example 16']),
    (check, (0,), ['BATCH_SIZE is 0', 'for example 8']),
    (check, (-8,), ['BATCH_SIZE is -8', 'for example 8']),
    (check, (50, 3), ['multiple of 24, for example 48']),
    *((RULES, (n,), ['parameter_partitioning_dims']) for n in (0, 3, None)),
    (
      lambda: specs(partitioning.make_mesh(8), mlp_dim=100),
      (),
      [
        'layers/mlp/wi_0/kernel has 100 along',
        "'mlp'",
        '-> model',
        "{'data': 1, 'model': 8}",
        '100 is not divisible by 8',
      ],
    ),
    (
      shard,
      ([('mlp', ('data', 'model')), ('embed', None)], 12),
      ['over 8 devices'],
    ),
    (shard, ([('embed', 'modle'), ('mlp', None)],), ["'modle'", "'data', 'mo"]),
    (shard, ([('embed', 'model')],), [W, "no rule for 'mlp': add ('mlp', N"]),
    (
      shard,
      ([('embed', 'model', 1), ('mlp', None)],),
      [W, 'cannot be followed', "{'data': 2, 'model': 4}"],
    ),
    (shard, ({'embed': 'model', 'mlp': None},), [W, 'cannot be followed']),
    (
      constrain,
      ([('batch', 'data'), ('length', 'modle'), ('embed', None)],),
      [
        "shape [2, 6, 3], axes ('batch', 'length', 'embed')",
        "'length': 'modle'",
        "'model'",
      ],
    ),
    (
      shard_of,
      ([[0, 0, 0], [0, 1, 1], [1, 1, 1]], 0),
      ['cuts the batch across'],
    ),
  ],
)
def test_refuses(function, arguments, words):
  with pytest.raises(errors.UserError) as error:
    function(*arguments)
  assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize('batch, parts', [(16, 1), (16, 2), (48, 3)])
def test_a_batch_that_divides_is_taken(batch, parts):
  check(batch, parts)
