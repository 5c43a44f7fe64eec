"""The model: its parameter tree, and what must hold for every choice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import t5_config
from flax import traverse_util
from flax.core import unfreeze
from flax.linen import logical_axis_rules, partitioning
from jax.sharding import Mesh
from network_cases import (
  SIZES,
  B,
  K,
  L,
  V,
  batch,
  forward,
  logits_of,
  loss_of,
  model,
  params_of,
  variables_of,
)
from quick_jit import jit

from t5x_variants import activations, errors
from t5x_variants.model import network, stacks

# The tree of parameters.

_NORM = {'scale': ((8,), ('embed',))}
_ATTENTION = {
  f'{name}/kernel': ((8, 8), ('embed', 'joined_kv'))
  for name in ('query', 'key', 'value')
} | {'out/kernel': ((8, 8), ('joined_kv', 'embed'))}
_LAYER = {
  'encoder': {'pre_attention_layer_norm': _NORM, 'attention': _ATTENTION},
  'decoder': {
    'pre_self_attention_layer_norm': _NORM,
    'self_attention': _ATTENTION,
    'pre_cross_attention_layer_norm': _NORM,
    'encoder_decoder_attention': _ATTENTION,
  },
}


def block(gated):
  names = ('wi_0', 'wi_1') if gated else ('wi',)
  tree = {f'{name}/kernel': ((8, 6), ('embed', 'mlp')) for name in names}
  return tree | {'wo/kernel': ((6, 8), ('mlp', 'embed'))}


def expected_tree(gated, scan, tied):
  tree = {'token_embedder/embedding': ((V, 8), ('vocab', 'embed'))}
  if not tied:
    tree['decoder/logits_dense/kernel'] = (8, V), ('embed', 'vocab')
  for stack, parts in _LAYER.items():
    tree[f'{stack}/{stack}_norm/scale'] = (8,), ('embed',)
    tree[f'{stack}/relpos_bias/rel_embedding'] = (
      (2, 32),
      ('heads', 'relpos_buckets'),
    )
    both = {'pre_mlp_layer_norm': _NORM, 'mlp': block(gated)}
    for part, leaves in (parts | both).items():
      for leaf, (shape, axes) in leaves.items():
        if scan:
          name = f'{stack}/layers/{part}/{leaf}'
          tree[name] = (2, *shape), ('layers', *axes)
          continue
        for index in range(2):
          tree[f'{stack}/layers_{index}/{part}/{leaf}'] = shape, axes
  return tree


def actual_tree(module):
  variables = variables_of(module)
  axes = unfreeze(partitioning.get_axis_names(variables['params_axes']))
  axes = traverse_util.flatten_dict(axes, sep='/')
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  assert {v.dtype for v in params.values()} == {jnp.dtype('float32')}
  return {k: (v.shape, tuple(axes[k])) for k, v in params.items()}


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('gated', [False, True])
def test_tree_is_as_written_out(gated, scan):
  module = model(gated=gated, scan_layers=scan, dtype='bfloat16')
  assert actual_tree(module) == expected_tree(gated, scan, False)


def test_tied_tree_has_no_output_matrix():
  module = model(logits_via_embedding=True)
  assert actual_tree(module) == expected_tree(True, False, True)
  logits = logits_of(module, params_of(module), *batch())
  assert logits.shape == (B, L, V) and logits.dtype == jnp.float32


@pytest.mark.parametrize('scan', [False, True])
def test_each_layer_has_its_own_coefficients(scan):
  module = model(activation='polynorm', scan_layers=scan, dtype='bfloat16')
  flat = traverse_util.flatten_dict(params_of(module), sep='/')
  found = {k: v for k, v in flat.items() if '/activation/' in k}
  layers = ['layers'] if scan else ['layers_0', 'layers_1']
  assert set(found) == {
    f'{stack}/{layer}/mlp/activation/{name}'
    for stack in ('encoder', 'decoder')
    for layer in layers
    for name in ('weight', 'bias')
  }
  axes = actual_tree(module)
  for name, value in found.items():
    assert value.dtype == jnp.float32
    assert value.shape[:-1] == ((2,) if scan else ())
    assert axes[name][1][-1] == 'mlp_activations'
  gradient = jit(jax.grad(functools.partial(loss_of, module)))
  gradients = gradient(params_of(module))
  flat = traverse_util.flatten_dict(gradients, sep='/')
  for name in found:
    assert flat[name].dtype == jnp.float32
    assert np.all(flat[name] != 0), name


# What must hold for every choice.


@pytest.mark.parametrize(
  'choices',
  [{}, {'activation': 'polynorm', 'gated': False, 'dtype': 'bfloat16'}],
)
def test_scanned_equals_unrolled(choices):
  unrolled = model(**choices)
  scanned = model(**choices, scan_layers=True)
  params = params_of(unrolled)
  stacked = network.stack_layers(params)
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert shapes(stacked) == shapes(params_of(scanned))
  back = network.unstack_layers(stacked)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  one = logits_of(unrolled, params, *batch())
  two = logits_of(scanned, stacked, *batch())
  tolerance = 0.1 if 'dtype' in choices else 1e-5
  np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('scan', [False, True])
def test_remat_changes_nothing_but_memory(scan):
  results, saved = {}, {}
  sizes = {'num_encoder_layers': 1, 'num_decoder_layers': 1}
  params = params_of(model(scan_layers=scan, **sizes))
  for policy in stacks.REMAT_POLICIES:
    module = model(remat_policy=policy, scan_layers=scan, **sizes)
    loss = functools.partial(loss_of, module)
    results[policy] = jit(jax.value_and_grad(loss))(params)
    kept = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
    saved[policy] = sum(x.size for x in jax.tree.leaves(kept))
  for policy in ('minimal', 'full'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      results[policy],
      results['none'],
    )
  assert saved['full'] < saved['minimal'] < saved['none']


def test_no_target_sees_a_later_one():
  module = model(activation='polynorm')
  params = params_of(module)
  inputs, _, targets = batch()
  table = params['token_embedder']['embedding']

  def decode(embedded):
    # Embeddings in place of tokens: the decoder's part alone.
    mask, cross = network._decoder_masks(inputs, targets, None, None, False)
    encoded = module.bind({'params': params}).encode(
      inputs, enable_dropout=False
    )
    return module.apply(
      {'params': params},
      method=lambda m: m.decoder(
        embedded, encoded, mask, cross, True, False, None
      ),
    )

  reached = jax.jacrev(lambda x: decode(x).sum((0, 2)))
  jacobian = jit(reached)(table[targets])
  reach = np.abs(jacobian).sum((1, 3))  # [from logits, to inputs]
  assert np.all(np.triu(reach, 1) == 0)
  assert np.all(np.tril(reach)[np.tril_indices(L)] > 0)


def test_padding_is_not_seen():
  module = model()
  params = params_of(module)
  inputs, shifted, targets = batch()
  plain = logits_of(module, params, inputs, shifted, targets)
  padded = [np.pad(x, ((0, 0), (0, 3))) for x in (inputs, shifted, targets)]
  with_padding = logits_of(module, params, *padded)[:, :L]
  np.testing.assert_allclose(plain, with_padding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_packed_equals_separate(scan):
  module = model(activation='polyrelu', scan_layers=scan)
  params = params_of(module)
  inputs, shifted, targets = batch()
  separate = logits_of(module, params, inputs, shifted, targets)

  def pack(x):
    return np.pad(x.reshape(1, -1), ((0, 0), (0, 2)))

  def ids(x):
    return pack(np.broadcast_to([[1], [2]], x.shape))

  packed = logits_of(
    module,
    params,
    pack(inputs),
    pack(shifted),
    pack(targets),
    encoder_segment_ids=ids(inputs),
    decoder_segment_ids=ids(targets),
  )[0, : 2 * L]
  np.testing.assert_allclose(
    packed.reshape(2, L, V), separate, rtol=1e-4, atol=1e-5
  )


def decoded(module, params, inputs, shifted):
  """Logits of one position after the other, through the cache."""
  length = shifted.shape[1]
  _, state = module.apply(
    {'params': params},
    jnp.ones_like(inputs),
    jnp.ones_like(shifted),
    jnp.ones_like(shifted),
    decode=True,
    enable_dropout=False,
    mutable=['cache'],
  )
  encoded = module.apply(
    {'params': params}, inputs, enable_dropout=False, method='encode'
  )

  def step(cache, token):
    y, state = module.apply(
      {'params': params, 'cache': cache},
      encoded,
      inputs,
      token[:, None],
      token[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=length,
      mutable=['cache'],
      method='decode',
    )
    return state['cache'], y[:, 0]

  cache, logits = jax.lax.scan(
    step, state['cache'], jnp.swapaxes(shifted, 0, 1)
  )
  return jnp.swapaxes(logits, 0, 1), cache


@pytest.mark.parametrize(
  'name, gated',
  [*((name, True) for name in activations.names()), ('polynorm', False)],
)
def test_decoding_equals_the_full_pass(name, gated):
  module = model(
    activation=name, gated=gated, num_encoder_layers=1, num_decoder_layers=1
  )
  inputs, shifted, targets = batch()
  inputs[0, -2:] = 0

  @jit
  def both(params):
    full = forward(module, params, inputs, shifted, targets)
    return full, decoded(module, params, inputs, shifted)[0]

  full, steps = both(params_of(module))
  np.testing.assert_allclose(steps, full, rtol=1e-4, atol=1e-5)


def test_scanned_decoding_and_its_cache():
  module = model(scan_layers=True)
  assert module.scan_layers and not model().scan_layers
  params = params_of(module)
  inputs, shifted, targets = batch()
  full = logits_of(module, params, inputs, shifted, targets)
  decode = jit(functools.partial(decoded, module))
  steps, cache = decode(params, inputs, shifted)
  np.testing.assert_allclose(steps, full, rtol=1e-4, atol=1e-5)
  assert jax.tree.map(jnp.shape, unfreeze(cache)) == {
    'decoder': {
      'layers': {
        'self_attention': {
          'cached_key': (2, B, 2, 4, L),
          'cached_value': (2, B, 2, 4, L),
          'cache_index': (2,),
        }
      }
    }
  }


def test_preactivations_of_each_layer():
  for scan, shape in ((False, (B, K, 6)), (True, (2, B, K, 6))):
    module = model(scan_layers=scan, remat_policy='full')
    look = functools.partial(forward, module, mutable=['intermediates'])
    _, seen = jax.eval_shape(look, params_of(module), *batch())
    layer = 'layers' if scan else 'layers_1'
    z = seen['intermediates']['encoder'][layer]['mlp']['preactivation'][0]
    assert z.shape == shape


# Sharding.

RULES = (
  ('batch', 'data'),
  ('mlp', 'model'),
  ('heads', 'model'),
  ('joined_kv', 'model'),
  ('vocab', 'model'),
)


def count_constraints(jaxpr):
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == 'sharding_constraint'
    for value in equation.params.values():
      for inner in value if isinstance(value, list | tuple) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += count_constraints(inner)
  return total


@pytest.mark.parametrize('scan', [False, True])
def test_constraints_reach_the_program_under_a_mesh_only(scan):
  module = model(scan_layers=scan, vocab_size=16)
  params = params_of(module)
  tokens = batch(rows=4)

  run = functools.partial(forward, module)

  def count():
    # A new function each time: a trace is kept, whatever the mesh is.
    traced = jax.make_jaxpr(lambda p: run(p, *tokens))(params)
    return count_constraints(traced.jaxpr)

  plain = jit(run)(params, *tokens)
  assert count() == 0
  devices = np.array(jax.devices())
  assert devices.size == 8, 'tests run on eight simulated devices'
  mesh = Mesh(devices.reshape(4, 2), ('data', 'model'))
  # Activations: embedding and stack start; norm, q, k, v, residual of each
  # attention; norm, hidden, residual of the block.
  layers = {'encoder': 5 + 3, 'decoder': 2 * 5 + 3}
  times = 1 if scan else 2
  expected = 2 * 2 + times * sum(layers.values())
  with logical_axis_rules(RULES):
    assert count() == 0
    with jax.set_mesh(mesh):
      # Flax constrains each parameter besides, where it is declared.
      declared = len(jax.tree.leaves(params)) if not scan else None
      found = count()
      if not scan:
        assert found == expected + declared
      assert found >= expected
      sharded = jit(lambda p: run(p, *tokens))(params)
    with pytest.warns(DeprecationWarning), mesh:
      assert count() == expected
  np.testing.assert_allclose(sharded, plain, rtol=1e-4, atol=1e-5)


# Choices that cannot be.


@pytest.mark.parametrize(
  'choices, message',
  [
    ({'remat_policy': 'some'}, "'some'.*'full', 'minimal', 'none'"),
    ({'activation': 'gellu'}, 'gelu'),
    ({'dtype': 'float31'}, "'float31'"),
    ({'dtype': 'int32'}, "'int32'"),
    ({'mlp_dim': 0}, 'mlp_dim=0'),
    ({'num_heads': 2.0}, 'num_heads=2.0'),
    ({'dropout_rate': 1.0}, 'dropout_rate=1.0'),
  ],
)
@pytest.mark.usefixtures('unchecked')
def test_refuses(choices, message):
  with pytest.raises(errors.UserError, match=message):
    model(**choices)


def test_refuses_half_packed_batches_and_packed_decoding():
  module = model()
  ids = {'encoder_segment_ids': np.ones((B, K), int)}
  with pytest.raises(errors.UserError, match='need both'):
    forward(module, params_of(module), *batch(), **ids)
  ids['decoder_segment_ids'] = np.ones((B, L), int)
  with pytest.raises(errors.UserError, match='cannot be decoded'):
    forward(
      module, params_of(module), *batch(), **ids, decode=True, mutable=['cache']
    )


def test_configuration_is_hashable_and_takes_records():
  relu = activations.get('relu')
  one = t5_config(**SIZES, activation=relu, dtype='bfloat16')
  two = t5_config(**SIZES, activation='relu', dtype=jnp.bfloat16)
  assert one == two and hash(one) == hash(two)
  assert dataclasses.replace(one, mlp_dim=8).dtype == jnp.bfloat16


# t5x itself.


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('tied', [False, True])
def test_agrees_with_t5x(tied):
  theirs = pytest.importorskip(
    't5x.examples.t5.network',
    reason='needs a checkout of google-research/t5x (and airio, jestimator) '
    'in PYTHONPATH',
    exc_type=ImportError,
  )
  ours = model(logits_via_embedding=tied)
  sizes = dict(SIZES)
  their = theirs.Transformer(
    theirs.T5Config(
      **sizes, mlp_activations=('gelu', 'linear'), logits_via_embedding=tied
    )
  )
  assert actual_tree(their) == actual_tree(ours)
  params = params_of(their)
  inputs, shifted, targets = batch()
  ids = {
    'encoder_segment_ids': np.broadcast_to([1] * 3 + [2] * 3 + [0], (B, K)),
    'decoder_segment_ids': np.broadcast_to([1] * 2 + [2] * 2 + [0], (B, L)),
  }
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  for kwargs in ({}, ids):
    one, two = (
      logits_of(m, params, inputs, shifted, targets, **kwargs)
      for m in (ours, their)
    )
    close(one, two)
  one, two = (
    jax.jit(jax.grad(functools.partial(loss_of, m)))(params)
    for m in (ours, their)
  )
  jax.tree.map(close, one, two)
  (one, cache), (two, their_cache) = (
    jax.jit(functools.partial(decoded, m))(params, inputs, shifted)
    for m in (ours, their)
  )
  close(one, two)
  jax.tree.map(close, unfreeze(cache), unfreeze(their_cache))
