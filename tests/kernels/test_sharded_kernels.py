"""The kernels over a mesh, and in a model that trains on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import t5_config
from ffn_cases import (
  SAVES,
  SIGNED_ROOT,
  by_reference,
  call,
  distances,
  operands,
  value_and_pulled,
)
from quick_jit import jit

from t5x_variants import activations, errors, kernels
from t5x_variants.kernels import meshes
from t5x_variants.model import network


def mesh_of(data, model, names=('data', 'model')):
  return jax.make_mesh(
    (data, model), names, axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


@pytest.mark.parametrize('shape', [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize(
  'activation, gated, save, f',
  [
    ('swish', True, 'preactivations', 256),
    ('rational', False, 'inputs', 256),
    (SIGNED_ROOT, True, 'inputs', 200),
    (SIGNED_ROOT, False, 'preactivations', 200),
  ],
)
def test_sharded_equals_unsharded(shape, activation, gated, save, f):
  activation = activations.get(activation)
  primals, dy = operands(activation, gated, shape=(8, 6, 20), f=f)
  alone = by_reference(activation, gated, 'all')
  want = jit(functools.partial(value_and_pulled, alone))(primals, dy)
  mesh = mesh_of(*shape)

  def run(x, branches, wo, coefficients):
    return kernels.ffn(
      x,
      branches if gated else branches[0],
      wo,
      coefficients,
      activation,
      gated,
      save=save,
      implementation='pallas_interpret',
      mesh=mesh,
    )

  got = jit(functools.partial(value_and_pulled, run))(primals, dy)
  assert max(jax.tree.leaves(distances(got, want))) < 4e-6


@pytest.mark.parametrize('shape', [(1, 8), (2, 4), (8, 1)])
def test_rows_that_cross_shards(shape):
  """PolyNorm over a split width: XLA sums the rows; the kernels refuse."""
  activation = activations.get('polynorm')
  primals, dy = operands(activation, False, shape=(8, 6, 20), f=256)
  alone = by_reference(activation, False, 'all')
  want = jit(functools.partial(value_and_pulled, alone))(primals, dy)
  mesh = mesh_of(*shape)

  def run(implementation, save, x, branches, wo, coefficients):
    return kernels.ffn(
      x,
      branches[0],
      wo,
      coefficients,
      activation,
      False,
      save=save,
      implementation=implementation,
    )

  spec = jax.sharding.PartitionSpec
  specs = (
    spec('data'),
    (spec(None, 'model'),),
    spec('model', None),
    {'weight': spec(), 'bias': spec()},
  )
  with jax.set_mesh(mesh):
    placed = jax.device_put(
      primals,
      jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs),
    )
    for save in SAVES:
      form = functools.partial(run, None, save)
      got = jit(functools.partial(value_and_pulled, form))(placed, dy)
      assert max(jax.tree.leaves(distances(got, want))) < 4e-6
    kernel = functools.partial(run, 'pallas_interpret', 'inputs')
    if shape[1] == 1:
      got = jit(functools.partial(value_and_pulled, kernel))(placed, dy)
      assert max(jax.tree.leaves(distances(got, want))) < 4e-6
    else:
      with pytest.raises(errors.UserError, match='needs whole rows of F'):
        kernel(*primals)


def test_the_mesh_of_either_context():
  """That of jax.set_mesh and that of t5x's `with mesh:`, inside a jit too."""
  mesh = mesh_of(4, 2)
  seen = []

  def block(x):
    seen.append(meshes.current())
    return call(shape=x.shape, f=256)

  def text():
    return str(jax.make_jaxpr(lambda x: jax.jit(block)(x))(jnp.ones((8, 20))))

  assert 'shard_map' not in text() and seen.pop().empty
  with pytest.warns(DeprecationWarning), mesh:
    assert 'shard_map' in text() and seen.pop() == mesh
  with jax.set_mesh(mesh):
    assert 'shard_map' in text() and seen.pop() == mesh.abstract_mesh


@pytest.mark.parametrize(
  'mesh, shape, message',
  [
    ((8, 1, ('data', 'x')), (8, 20), r"axes \['data', 'x'\] .*'model'"),
    ((8, 1), (9, 20), r'\(9, 20\), .*8 devices of `data`'),
    ((1, 8), (8, 20), 'F is 204, .*8 devices of `model`'),
  ],
)
def test_a_mesh_that_does_not_fit(mesh, shape, message):
  with pytest.raises(errors.UserError, match=message):
    call(mesh=mesh_of(*mesh), shape=shape, f=204)


@pytest.mark.parametrize(
  'name, gated', [('rational', True), ('polynorm', False)]
)
def test_the_model_trains_the_same(name, gated):
  """Loss and gradients of a scanned, rematerialised stack on a mesh."""
  sizes = dict(
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=128,
    dropout_rate=0.0,
    activation=name,
    gated=gated,
    scan_layers=True,
    remat_policy='full',
  )
  tokens = np.random.default_rng(0).integers(1, 16, (8, 6))
  plain = network.Transformer(t5_config(**sizes))
  init = functools.partial(plain.init, enable_dropout=False)
  variables = jax.jit(init)(jax.random.key(0), *[tokens] * 3)

  def loss(module, params):
    logits = module.apply(
      {'params': params}, *[tokens] * 3, enable_dropout=False
    )
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 1])

  def gradient(**choices):
    module = network.Transformer(t5_config(**sizes, **choices))
    run = jax.value_and_grad(functools.partial(loss, module))
    return jit(run)(variables['params'])

  want = gradient()
  with jax.set_mesh(mesh_of(8, 1)):
    got = gradient(implementation='pallas_interpret')
  assert abs(got[0] - want[0]) < 1e-5 * abs(want[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    got[1],
    want[1],
  )
