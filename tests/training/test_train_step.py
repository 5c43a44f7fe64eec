"""One step: however the batch is cut or the devices lie, the same update."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configs import t5_config
from quick_jit import jit

from t5x_variants.distributed import partitioning
from t5x_variants.model import network, parameters
from t5x_variants.training import optimizer, train_state, train_step

BATCH, INPUTS, TARGETS, VOCAB = 16, 12, 8, 64


@functools.cache
def make_model(dropout_rate=0.0):
  # PolyNorm reduces over the width, which a mesh may split; gated, so that
  # the block has all three matrices.
  return network.Transformer(
    t5_config(
      vocab_size=VOCAB,
      emb_dim=32,
      num_heads=8,
      head_dim=8,
      mlp_dim=48,
      num_encoder_layers=2,
      num_decoder_layers=1,
      dropout_rate=dropout_rate,
      activation='polynorm',
      gated=True,
      scan_layers=True,
    )
  )


def make_optimizer(axes):
  return optimizer.adafactor(
    axes,
    lambda step: 0.01,
    min_dim_size_to_factor=32,
    coefficients=optimizer.coefficient_adam(1e-3),
  )


def make_batch(seed=0, packed=True):
  """Rows of very different length; the last one is padding only."""
  rng = np.random.default_rng(seed)

  def rows(length, longest):
    tokens = rng.integers(1, VOCAB, (BATCH, length)).astype(np.int32)
    real = np.arange(length) < np.asarray(longest)[:, None]
    return tokens * real, real.astype(np.int32)

  lengths = rng.permutation(np.linspace(1, TARGETS, BATCH).astype(int))
  lengths[-1] = 0
  inputs, input_ids = rows(INPUTS, np.minimum(lengths + 3, INPUTS))
  targets, weights = rows(TARGETS, lengths)
  shifted = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': weights,
  }
  if packed:
    for name, ids in (('encoder', input_ids), ('decoder', weights)):
      half = ids.shape[1] // 2
      batch[f'{name}_segment_ids'] = ids * (
        1 + (np.arange(ids.shape[1]) > half)
      )
      batch[f'{name}_positions'] = ids * (np.arange(ids.shape[1]) % half)
  return {name: value.astype(np.int32) for name, value in batch.items()}


@functools.cache
def start():
  """A state whose coefficients and norms are no longer as they began."""
  _, axes = parameters.shapes_and_axes(make_model())
  tx = make_optimizer(axes)
  state = jit(functools.partial(train_state.create, make_model(), tx))(
    jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (x + 0.05 * rng.normal(size=x.shape)).astype(np.float32),
    jax.device_get(state.params),
  )
  return tx, jax.device_get(state.replace(params=params))


SGD = optax.sgd(0.1)


def start_sgd():
  """The same with the update that shows the gradient itself."""
  _, state = start()
  return state.replace(opt_state=SGD.init(state.params))


def close(got, wanted, tolerance):
  """Every leaf within a tolerance of the size of the leaf."""

  def check(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(1.0, np.abs(b).max()) if b.size else 1.0
    assert np.abs(a - b).max() <= tolerance * scale, (
      jax.tree_util.keystr(path),
      np.abs(a - b).max(),
    )

  jax.tree_util.tree_map_with_path(
    check, jax.device_get(got), jax.device_get(wanted)
  )


@functools.cache
def sgd_step(parts=1):
  return jit(
    train_step.make_train_step(
      make_model(),
      SGD,
      random_seed=0,
      num_microbatches=parts,
      z_loss=1e-3,
      label_smoothing=0.1,
    )
  )


def test_microbatches_give_the_same_update():
  batch = make_batch()
  whole, sums = sgd_step()(start_sgd(), batch)
  cut, cut_sums = sgd_step(4)(start_sgd(), batch)
  close(cut.params, whole.params, 1e-6)
  close(cut_sums, sums, 1e-6)


def test_a_microbatch_is_every_n_th_row():
  batch = {'x': np.arange(24).reshape(12, 2)}
  parts = train_step.microbatches(batch, 3)['x']
  assert parts.shape == (3, 4, 2)
  for part in range(3):
    np.testing.assert_array_equal(parts[part], batch['x'][part::3])


def test_the_update_is_that_of_the_mean_over_tokens():
  """A gradient step of a plain, written-out mean, in one go."""
  model, state, batch = make_model(), start_sgd(), make_batch()

  def mean_loss(params):
    logits = model.apply(
      {'params': params},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      enable_dropout=False,
      **{k: v for k, v in batch.items() if 'segment' in k or 'positions' in k},
    )
    targets, weights = (
      batch['decoder_target_tokens'],
      batch['decoder_loss_weights'],
    )
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    z_loss = 1e-3 * jax.nn.logsumexp(logits, axis=-1) ** 2
    wrong = 0.1 / (VOCAB - 1)
    q = jax.nn.one_hot(targets, VOCAB) * (0.9 - wrong) + wrong
    smoothed = optax.softmax_cross_entropy(logits, q) + (q * jnp.log(q)).sum(-1)
    return tuple(
      (x * weights).sum() / weights.sum() for x in (smoothed + z_loss, nats)
    )

  gradient, loss = jit(jax.grad(mean_loss, has_aux=True))(state.params)
  got, sums = sgd_step()(state, batch)
  wanted = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, gradient)
  close(got.params, wanted, 1e-6)
  np.testing.assert_allclose(sums['loss'] / sums['weights'], loss, rtol=1e-6)
  np.testing.assert_allclose(
    sums['gradient_norm'], optax.tree.norm(gradient), rtol=1e-5
  )


@functools.cache
def on_one_device():
  """Adafactor's step on a packed batch, in one part."""
  tx, state = start()
  step = train_step.make_train_step(make_model(), tx, random_seed=0)
  return jax.device_get(jit(step)(state, make_batch()))


@pytest.mark.parametrize('model_axis', [1, 4])
def test_meshes_agree_with_one_device(model_axis):
  """In two parts, too: the whole way a step takes on a pod."""
  model = make_model()
  tx, state = start()
  batch = make_batch()
  wanted, wanted_sums = on_one_device()
  shapes, axes = parameters.shapes_and_axes(model)
  mesh = partitioning.make_mesh(model_axis)
  # Fully sharded where there is something to share out over `data`.
  rules = partitioning.standard_logical_axis_rules(1 if model_axis == 1 else 2)
  where = partitioning.state_shardings(
    state, shapes, partitioning.param_shardings(shapes, axes, mesh, rules), mesh
  )
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    got, sums = jit(
      train_step.make_train_step(model, tx, random_seed=0, num_microbatches=2),
      out_shardings=(where, None),
    )(jax.device_put(state, where), partitioning.global_batch(batch, mesh))
  close(got.params, wanted.params, 1e-5)
  close(sums, wanted_sums, 1e-5)


def test_sums_add_up_over_steps():
  state = start_sgd()
  total = dict.fromkeys(train_state.SUMS, 0.0)
  for seed in range(3):
    batch = make_batch(seed)
    state, sums = sgd_step()(state, batch)
    assert set(sums) == set(train_state.SUMS)
    assert sums['weights'] == batch['decoder_loss_weights'].sum()
    assert sums['tokens'] == sum(
      (batch[name] > 0).sum()
      for name in ('encoder_input_tokens', 'decoder_target_tokens')
    )
    total = {name: total[name] + float(sums[name]) for name in total}
  assert int(state.step) == 3 and total['steps'] == 3
  close(dict(state.sums), total, 1e-6)


def test_a_batch_of_padding_changes_nothing_to_nan():
  state = start_sgd()
  nothing = jax.tree.map(np.zeros_like, make_batch())
  got, sums = sgd_step()(state, nothing)
  for leaf in jax.tree.leaves((got.params, got.opt_state, sums)):
    assert np.all(np.isfinite(leaf))
  assert sums['loss'] == 0 and sums['gradient_norm'] == 0
  close(got.params, state.params, 0)


def test_dropout_follows_from_seed_and_step_alone():
  batch = make_batch()

  @jit
  def run(seed, state):
    return train_step.make_train_step(
      make_model(dropout_rate=0.3), SGD, random_seed=seed, num_microbatches=2
    )(state, batch)

  def loss(seed, step):
    state = start_sgd().replace(step=np.int32(step))
    return float(run(np.int32(seed), state)[1]['loss'])

  assert loss(0, 7) == loss(0, 7)
  losses = [loss(0, 7), loss(1, 7), loss(0, 8), loss(7, 0)]
  assert len(set(losses)) == len(losses)
  # A restart has another history and draws the same masks: a state that was
  # only ever at step 8 and one that came there from step 7.
  came, _ = run(np.int32(0), start_sgd().replace(step=np.int32(7)))
  assert int(came.step) == 8
  came = came.replace(params=start_sgd().params)
  assert float(run(np.int32(0), came)[1]['loss']) == loss(0, 8)
  # The seed as an argument, which programs of all seeds have in common.
  step = train_step.make_train_step(
    make_model(dropout_rate=0.3), SGD, random_seed=99, num_microbatches=2
  )
  key = np.asarray(jax.random.key_data(jax.random.key(1)))
  state = start_sgd().replace(step=np.int32(7))
  assert float(jit(step)(state, batch, key)[1]['loss']) == loss(1, 7)


@functools.cache
def eval_step(parts=1, dropout_rate=0.0):
  return jit(train_step.make_eval_step(make_model(dropout_rate), parts))


def test_evaluation_has_no_dropout():
  params, batch = start_sgd().params, make_batch()
  close(
    eval_step(dropout_rate=0.3)(params, batch), eval_step()(params, batch), 0
  )


def test_evaluation_in_parts_is_evaluation():
  state, batch = start_sgd(), make_batch()
  whole = eval_step()(state.params, batch)
  parts = eval_step(4)(state.params, batch)
  assert set(whole) == {'loss', 'z_loss', 'correct', 'weights', 'tokens'}
  close(parts, whole, 1e-6)
  # What training reports for the same parameters.
  _, sums = sgd_step()(state, batch)
  np.testing.assert_allclose(sums['loss'], whole['loss'], rtol=1e-6)


def test_a_packed_row_is_its_examples():
  """Two examples in one row cost what they cost in two."""
  params = start_sgd().params
  rng = np.random.default_rng(0)
  inputs = rng.integers(1, VOCAB, (2, 6)).astype(np.int32)
  targets = rng.integers(1, VOCAB, (2, 4)).astype(np.int32)
  shifted = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  apart = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': np.ones_like(targets),
  }
  packed = {name: value.reshape(1, -1) for name, value in apart.items()}
  packed['encoder_segment_ids'] = np.repeat([[1, 2]], 6, axis=1)
  packed['decoder_segment_ids'] = np.repeat([[1, 2]], 4, axis=1)
  close(eval_step()(params, packed), eval_step()(params, apart), 1e-6)
