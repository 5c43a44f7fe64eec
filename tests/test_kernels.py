"""The feed-forward block's implementations against float64, and each other.

One suite over the whole activation table, gated and not. The kernels run
interpreted; odd sizes make every kind of padding happen, and small tiles make
several tiles, blocks of F and chunks.
"""

import dataclasses
import functools
import logging

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jax.experimental.pallas import tpu as pltpu

from t5x_variants import activations, errors, kernels, mlp, network, stacks
from t5x_variants.kernels import dispatch, meshes, reference, sharded, tiles

NAMES = activations.names()
SAVES = ('inputs', 'preactivations')
# Two tiles, two blocks of F; each its own chunk, or (when whole) two chunks.
SMALL = tiles.Tiles(32, 128, (32, 128), 1, 0)
# Two blocks, one of 256 columns and one of 128.
RAGGED = tiles.Tiles(32, 256, (32, 128), 1, 0)
SMALL_ROWS = tiles.Tiles(32, 256, (16, 256), 1, 0)


def compiled(function):
  """A jitted function whose machine code is made fast, not made to be fast."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


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

    run = compiled(functools.partial(value_and_pulled, plain))
    return jax.tree.map(np.asarray, run(*wide))


def by_reference(activation, gated, save, **kwargs):
  def run(x, branches, wo, coefficients):
    wi = branches if gated else branches[0]
    return reference.ffn(
      x, wi, wo, coefficients, activation, gated, save=save, **kwargs
    )

  return run


def by_kernel(activation, gated, save, cut='small', interpret=True):
  if cut == 'small':
    cut = SMALL_ROWS if activation.kind == 'rowwise' else SMALL
  block = sharded.Block(
    activation, gated, save, tiles.INTERPRETED, None, interpret, cut
  )
  return functools.partial(sharded.ffn, block)


def distances(got, want):
  """Relative L2 error of each leaf."""

  def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
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

  @compiled
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


def over_the_table(*few):
  """All of the table, gated and not; what is not among the few is slow."""
  return pytest.mark.parametrize(
    'name, gated',
    [
      pytest.param(
        name, gated, marks=[] if (name, gated) in few else pytest.mark.slow
      )
      for name in NAMES
      for gated in (False, True)
    ],
  )


@over_the_table(
  ('gelu', True), ('rational', False), ('polynorm', True), ('polyrelu', False)
)
def test_equals_float64_in_float32(name, gated):
  activation = activations.get(name)
  found = errors_of(activation, gated, 'float32', all_forms(activation, gated))
  for form, off in found.items():
    assert max(jax.tree.leaves(off)) < 4e-6, (form, off)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_is_no_worse_than_xla_in_bfloat16(name, gated):
  activation = activations.get(name)
  found = errors_of(activation, gated, 'bfloat16', all_forms(activation, gated))
  for save in SAVES:
    y, (dx, dw, dwo, dc) = found['pallas', save]
    kernel = (y, dx, dwo, max(dw))
    xla = []
    for form in ('all', save):
      y, (dx, dw, dwo, xla_dc) = found['xla', form]
      xla.append((y, dx, dwo, max(dw)))
    for one, *others in zip(kernel, *xla, strict=True):
      assert one < 1.15 * max(others) + 1e-4, (save, found)
    # XLA rounds what it stores, and does not where it fuses: which of its own
    # forms is the more exact differs by a factor of two between its versions.
    for one, other in zip(*xla, strict=True):
      assert other < 2.5 * one + 1e-4, (save, found)
    # z is never rounded for A: what is left is the float32 of the sums. For B
    # it is, as where XLA stores it.
    assert dc < (1e-5 if save == 'inputs' else 1.15 * xla_dc + 1e-3), found


def test_an_activation_of_this_test_has_a_kernel():
  def wave(z, c):
    return c['size'][0] * jnp.sin(c['pitch'][0] * z) + c['pitch'][1] * z

  activation = activations.define(
    'wave', wave, paper='2026', initial={'size': [0.5], 'pitch': [1.2, 0.1]}
  )
  off = errors_of(
    activation,
    True,
    'float32',
    {s: by_kernel(activation, True, s) for s in SAVES},
  )
  assert max(jax.tree.leaves(off)) < 4e-6, off


@hypothesis.settings(max_examples=4)
@hypothesis.given(
  tokens=strategies.integers(1, 70),
  d=strategies.integers(1, 140),
  f=strategies.integers(1, 300),
  case=strategies.sampled_from(
    [('rational', False), ('swish', True), ('polynorm', False)]
  ),
  save=strategies.sampled_from(SAVES),
)
def test_any_shape(tokens, d, f, case, save):
  activation = activations.get(case[0])
  functions = {'pallas': by_kernel(activation, case[1], save, cut=None)}
  off = errors_of(
    activation, case[1], 'float32', functions, shape=(tokens, d), f=f
  )
  assert max(jax.tree.leaves(off)) < 2e-5, off


@pytest.mark.parametrize('save', SAVES)
@over_the_table(('rational', False), ('polynorm', True))
def test_has_no_race_in_the_memory_model(name, gated, save):
  activation = activations.get(name)
  interpret = pltpu.InterpretParams(detect_races=True)
  kernel = by_kernel(activation, gated, save, interpret=interpret)
  off = errors_of(activation, gated, 'bfloat16', {'pallas': kernel})
  assert max(jax.tree.leaves(off)) < 4e-2, off
  assert not _races_found()


def _races_found():
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call as module

  return module.races is not None and module.races.races_found


@pytest.mark.parametrize('save', SAVES)
def test_a_last_block_may_be_narrower(save):
  activation = activations.get('swish')
  functions = {'ragged': by_kernel(activation, True, save, cut=RAGGED)}
  off = errors_of(activation, True, 'float32', functions, f=300)
  assert max(jax.tree.leaves(off)) < 4e-6, off


@pytest.mark.parametrize('save', SAVES)
@pytest.mark.parametrize('name, gated', [('rational', True), ('gelu', False)])
def test_parts_of_f_add_up(name, gated, save):
  # F = 300 is padded to 384: three parts, the last of them mostly padding.
  cut = dataclasses.replace(SMALL, parts=3)
  activation = activations.get(name)
  block = sharded.Block(
    activation, gated, save, tiles.INTERPRETED, None, True, cut
  )
  functions = {'parts': functools.partial(sharded.ffn, block)}
  off = errors_of(activation, gated, 'float32', functions, f=300)
  assert max(jax.tree.leaves(off)) < 4e-6, off
  # Sums of parts are rounded once, as of one.
  whole = by_kernel(activation, gated, save)
  found = errors_of(
    activation, gated, 'bfloat16', functions | {'whole': whole}, f=300
  )
  for one, other in zip(
    jax.tree.leaves(found['parts']),
    jax.tree.leaves(found['whole']),
    strict=True,
  ):
    assert one < 1.05 * other + 1e-6, found


def test_two_cores_share_the_tokens():
  activation = activations.get('polyrelu')
  block = sharded.Block(
    activation, True, 'inputs', tiles.INTERPRETED, None, True
  )
  cut = tiles.Tiles(16, 128, (16, 128), 2, 0)
  functions = {'two': functools.partial(sharded.ffn, block._replace(tiles=cut))}
  off = errors_of(activation, True, 'float32', functions)
  assert max(jax.tree.leaves(off)) < 4e-6, off


# What is stored for the backward pass.


def saved_bytes(function, primals):
  """Bytes kept that are not operands themselves."""
  kept = jax.eval_shape(lambda *p: jax.vjp(function, *p)[1], *primals)
  total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept))
  own = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(primals))
  return total - own


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_stores_what_save_says(name, gated):
  activation = activations.get(name)
  primals, _ = operands(activation, gated, dtype='bfloat16')
  z = 5 * 9 * primals[2].shape[0] * 2
  for make in (by_reference, by_kernel):
    stored = {
      s: saved_bytes(make(activation, gated, s), primals) for s in SAVES
    }
    assert stored == {'inputs': 0, 'preactivations': z * (1 + gated)}


@pytest.mark.parametrize('implementation', ['xla', 'pallas_interpret'])
@pytest.mark.parametrize('policy', stacks.REMAT_POLICIES)
def test_a_checkpoint_policy_keeps_to_save(policy, implementation):
  activation = activations.get('rational')
  primals, _ = operands(activation, False)
  x, (wi,), wo, coefficients = primals

  def stored(save):
    def run(x, wi, wo, coefficients):
      # A matmul's worth of work before and after, as in a layer.
      y = kernels.ffn(
        jnp.sin(x),
        wi,
        wo,
        coefficients,
        activation,
        False,
        save=save,
        implementation=implementation,
      )
      return jnp.sin(y)

    if policy != 'none':
      run = jax.checkpoint(run, policy=stacks.REMAT_POLICIES[policy])
    return saved_bytes(run, (x, wi, wo, coefficients))

  z = 5 * 9 * wo.shape[0] * 4
  more = stored('preactivations') - stored('inputs')
  assert more == (0 if policy == 'full' else z)


def test_dropout_under_a_written_derivative():
  activation = activations.get('swish')
  primals, dy = operands(activation, True)

  def run(save, primals, key):
    def dropout(hidden):
      return hidden * jax.random.bernoulli(key, 0.5, hidden.shape)

    form = by_reference(activation, True, save, on_hidden=dropout)
    return value_and_pulled(form, primals, dy)

  plain, *others = (
    compiled(functools.partial(run, save))(primals, jax.random.key(3))
    for save in ('all', *SAVES)
  )
  for other in others:
    assert max(jax.tree.leaves(distances(other, plain))) < 4e-6


# The choice.


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


def primitives(function):
  return str(jax.make_jaxpr(function)())


def test_a_cpu_takes_xla_and_a_name_is_kept():
  assert 'pallas_call' not in primitives(lambda: call(implementation=None))
  assert 'pallas_call' in primitives(call)
  # A constraint of the hidden activations is no reason against the kernels.
  assert 'pallas_call' in primitives(lambda: call(constrain=lambda h: h))


def test_the_table_chooses(monkeypatch):
  tokens, d, f = dispatch.TOKENS, 256, 512

  def choose(
    kind='TPU v6 lite', mesh=(1, 1), gated=False, save=None, tokens=tokens, f=f
  ):
    return dispatch._choice(
      kind,
      jax.sharding.AbstractMesh(mesh, ('data', 'model')),
      activations.get('gelu'),
      gated,
      save,
      jax.ShapeDtypeStruct((4, tokens // 4, d), jnp.bfloat16),
      jax.ShapeDtypeStruct((f, d), jnp.bfloat16),
    )

  monkeypatch.setattr(dispatch, 'TABLE', frozenset())
  assert choose() == 'xla'
  row = ('v6e', 'gelu', False, None, d, f)
  monkeypatch.setattr(dispatch, 'TABLE', frozenset({row}))
  assert choose() == 'pallas'
  # What counts is a device's share.
  assert choose(mesh=(2, 4), tokens=2 * tokens, f=4 * f) == 'pallas'
  for other in (
    {'gated': True},
    {'save': 'inputs'},
    {'kind': 'TPU v5 lite'},
    {'kind': 'cpu'},
    {'tokens': tokens - 4},
    {'mesh': (2, 1)},
    {'mesh': (1, 2)},
  ):
    assert choose(**other) == 'xla', other


def test_dropout_goes_to_xla_and_is_said_once(caplog):
  dispatch._say_once.cache_clear()
  with caplog.at_level(logging.WARNING, 't5x_variants'):
    for _ in range(2):
      program = primitives(lambda: call(on_hidden=lambda h: 0 * h))
      assert 'pallas_call' not in program
  assert len(caplog.records) == 1
  assert 'have no dropout' in caplog.text


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'implementation': 'triton'}, "'triton': use None or one of.*'pallas'"),
    ({'save': 'some'}, "'some': use None or one of.*'inputs'"),
    ({'save': 'all'}, "cannot run .* save='all' is autodiff's"),
    (
      {'implementation': 'pallas'},
      "needs a TPU of .*TPU v5e.*'cpu'.*'xla' can",
    ),
    ({'dtype': 'float16'}, 'dtype float16; .*bfloat16 or float32'),
    ({'shape': (0, 20)}, r'\(0, 20\): there are no tokens'),
    ({'activation': 'gelu'}, "'gelu', which is no record .*activations.get"),
    (
      {
        'name': 'polyrelu',
        'coefficients': {'weight': np.ones(2), 'bias': [0.0]},
      },
      r"shapes {'weight': \(3,\).*got {'weight': \(2,\)",
    ),
  ],
)
def test_a_slip_is_named(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    call(**arguments)


def test_float64_is_for_xla():
  with jax.enable_x64(True):
    assert call(implementation='xla', dtype='float64').dtype == jnp.float64
    with pytest.raises(errors.UserError, match='x has dtype float64'):
      call(dtype='float64')


def test_an_unaligned_row_is_refused():
  activation = activations.get('polynorm')
  x, w = jnp.ones((4, 128)), jnp.ones((128, 200))
  with pytest.raises(errors.UserError, match='F = 200, .*multiple of 128'):
    kernels.ffn(
      x,
      w,
      w.T,
      activation.init(),
      activation,
      False,
      implementation='pallas_interpret',
    )


def choose(d, f, chip, gated=True, rowwise=False):
  return tiles.choose(
    65536,
    d,
    f,
    'bfloat16',
    gated=gated,
    rowwise=rowwise,
    save='inputs',
    chip=tiles.CHIPS[chip],
  )


def test_tiles_shrink_until_they_fit_or_say_what_would():
  assert choose(768, 2048, 'TPU v6e').rows == 512
  assert choose(768, 2048, 'TPU v5e').rows == 256
  assert choose(1024, 2816, 'TPU v6e').rows == 512
  # What does not fit whole is split.
  assert choose(768, 2048, 'TPU v6e').parts == 1
  cut = choose(2048, 5120, 'TPU v6e')
  assert cut.parts == 2 and cut.width * cut.parts <= 5120
  assert cut.vmem <= tiles.CHIPS['TPU v6e'].vmem
  # Rows of F cannot be; and of D nothing is.
  with pytest.raises(errors.UserError, match='`model` axis of 2 or more'):
    choose(2048, 5120, 'TPU v6e', rowwise=True)
  with pytest.raises(errors.UserError, match='no sharding of the width'):
    choose(2**18, 512, 'TPU v6e')


# Sharded.


@pytest.mark.parametrize('shape', [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize(
  'name, gated, save',
  [('swish', True, 'preactivations'), ('rational', False, 'inputs')],
)
def test_sharded_equals_unsharded(shape, name, gated, save):
  activation = activations.get(name)
  primals, dy = operands(activation, gated, shape=(8, 6, 20), f=256)
  alone = by_reference(activation, gated, 'all')
  want = compiled(functools.partial(value_and_pulled, alone))(primals, dy)
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

  got = compiled(functools.partial(value_and_pulled, run))(primals, dy)
  assert max(jax.tree.leaves(distances(got, want))) < 4e-6


@pytest.mark.parametrize('shape', [(1, 8), (2, 4), (8, 1)])
def test_rows_that_cross_shards(shape):
  """PolyNorm over a split width: XLA sums the rows; the kernels refuse."""
  activation = activations.get('polynorm')
  primals, dy = operands(activation, False, shape=(8, 6, 20), f=256)
  alone = by_reference(activation, False, 'all')
  want = compiled(functools.partial(value_and_pulled, alone))(primals, dy)
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
      got = compiled(functools.partial(value_and_pulled, form))(placed, dy)
      assert max(jax.tree.leaves(distances(got, want))) < 4e-6
    kernel = functools.partial(run, 'pallas_interpret', 'inputs')
    if shape[1] == 1:
      got = compiled(functools.partial(value_and_pulled, kernel))(placed, dy)
      assert max(jax.tree.leaves(distances(got, want))) < 4e-6
    else:
      with pytest.raises(errors.UserError, match='needs whole rows of F'):
        kernel(*primals)


def mesh_of(data, model, names=('data', 'model')):
  return jax.make_mesh(
    (data, model), names, axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


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


# In the model.


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
  plain = network.Transformer(network.T5Config(**sizes))
  init = functools.partial(plain.init, enable_dropout=False)
  variables = jax.jit(init)(jax.random.key(0), *[tokens] * 3)

  def loss(module, params):
    logits = module.apply(
      {'params': params}, *[tokens] * 3, enable_dropout=False
    )
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 1])

  def gradient(**choices):
    module = network.Transformer(network.T5Config(**sizes, **choices))
    run = jax.value_and_grad(functools.partial(loss, module))
    return compiled(run)(variables['params'])

  want = gradient()
  with jax.set_mesh(mesh_of(8, 1)):
    got = gradient(ffn_implementation='pallas_interpret')
  assert abs(got[0] - want[0]) < 1e-5 * abs(want[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    got[1],
    want[1],
  )


def test_the_block_passes_its_choices_on(monkeypatch):
  seen = []
  monkeypatch.setattr(
    kernels, 'ffn', lambda x, *_, **kwargs: seen.append(kwargs) or x
  )
  x = jnp.ones((2, 3, 8))
  block = mlp.MlpBlock(
    8, implementation='pallas', save='inputs', dropout_rate=0.5
  )
  variables = block.init(jax.random.key(0), x, deterministic=True)
  block.apply(variables, x, deterministic=True)
  block.apply(variables, x, rngs={'dropout': jax.random.key(1)})
  initial, still, dropped = seen
  assert initial['implementation'] == 'xla'
  assert still['implementation'] == 'pallas' and still['save'] == 'inputs'
  assert still['on_hidden'] is None and dropped['on_hidden'] is not None
