"""Adafactor against its rule, layer by layer, and against t5x's own.

The reference below is the rule for one layer's parameter, written out in
float64 numpy; a scanned parameter is as many of them as it has layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec
from quick_jit import jit

from t5x_variants import errors
from t5x_variants.training import optimizer

# A tree like a scanned model's: an encoder deeper than the decoder, matrices
# with V in rows and columns (both sides >= 128) and with all of V.
SHAPES = {
  'encoder/layers/wi/kernel': ((3, 128, 160), ('layers', 'embed', 'mlp')),
  'encoder/layers/norm/scale': ((3, 128), ('layers', 'embed')),
  'encoder/layers/activation/bias': ((3, 1), ('layers', 'mlp_activations')),
  'encoder/layers/activation/weight': ((3, 4), ('layers', 'mlp_activations')),
  'encoder/norm/scale': ((128,), ('embed',)),
  'encoder/relpos/rel_embedding': ((4, 32), ('heads', 'relpos_buckets')),
  'decoder/layers/wo/kernel': ((2, 160, 128), ('layers', 'mlp', 'embed')),
  'decoder/layers/activation/weight': ((2, 4), ('layers', 'mlp_activations')),
  'token_embedder/embedding': ((256, 128), ('vocab', 'embed')),
}
STEPS = 6


def unflatten(flat):
  return traverse_util.unflatten_dict(flat, sep='/')


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


AXES = unflatten({name: axes for name, (_, axes) in SHAPES.items()})


def is_coefficient(name):
  return '/activation/' in name


def make_params(names=SHAPES):
  rng = np.random.default_rng(0)
  flat = {
    name: rng.normal(size=SHAPES[name][0]).astype(np.float32) for name in names
  }
  for name, value in flat.items():
    if name.endswith('bias'):
      flat[name] = np.zeros_like(value)
    elif 'layers' in name:
      # Layers of very different size: a scale for the stack would show.
      depth = len(value)
      value *= (10.0 ** np.arange(depth)).reshape(-1, *[1] * (value.ndim - 1))
  return unflatten(flat)


def make_gradients(params, step):
  """Spikes and all: some updates must be clipped, some layers' alone."""
  rng = np.random.default_rng(step + 1)

  def one(value):
    spikes = rng.choice([0.01, 0.1, 30.0], size=value.shape[:1])
    spikes = spikes.reshape(-1, *[1] * (value.ndim - 1))
    return (spikes * rng.standard_t(3, value.shape)).astype(np.float32)

  return jax.tree.map(one, params)


def rate(step):
  return 0.1 / (1 + step)


class Reference:
  """Adafactor for one layer's parameter, in float64."""

  def __init__(self, shape):
    self.factored = len(shape) == 2 and min(shape) >= 128
    self.v = np.zeros(shape)
    self.rows, self.columns = np.zeros(shape[:1]), np.zeros(shape[-1:])

  def update(self, w, g, step):
    beta = 1 - (step + 1.0) ** -0.8
    square = g**2 + 1e-30
    if self.factored:
      self.rows = beta * self.rows + (1 - beta) * square.mean(1)
      self.columns = beta * self.columns + (1 - beta) * square.mean(0)
      v = self.rows[:, None] * self.columns / self.rows.mean()
    else:
      v = self.v = beta * self.v + (1 - beta) * square
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt(np.mean(u**2)))
    return w - rate(step) * max(1e-3, np.sqrt(np.mean(w**2))) * u


def reference_run(params):
  """All parameters after STEPS steps, and how many updates were clipped."""
  flat = {k: v.astype(np.float64) for k, v in flatten(params).items()}
  scanned = {k for k in flat if SHAPES[k][1][0] == 'layers'}
  rules = {
    k: [Reference(v.shape[1:]) for _ in v]
    if k in scanned
    else [Reference(v.shape)]
    for k, v in flat.items()
  }
  for step in range(STEPS):
    gradients = flatten(make_gradients(params, step))
    for name, w in flat.items():
      g = gradients[name].astype(np.float64)
      if name in scanned:
        flat[name] = np.stack(
          [
            rule.update(*layer, step)
            for rule, *layer in zip(rules[name], w, g, strict=True)
          ]
        )
      else:
        flat[name] = rules[name][0].update(w, g, step)
  return flat


def run(tx, params, steps=STEPS, gradients=None):
  """Parameters after some steps on the made-up gradients."""
  start = params

  @jit
  def step_once(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = jit(tx.init)(params)
  for step in range(steps):
    g = gradients(step) if gradients else make_gradients(start, step)
    params, state = step_once(params, state, g)
  return jax.device_get(params)


def moved(params, steps=STEPS, **options):
  """Parameters by name after some steps of ours."""
  return flatten(run(optimizer.adafactor(AXES, rate, **options), params, steps))


def worst(got, wanted):
  """Largest difference, relative to the size of its layer's parameter."""
  differences = {}
  for name, w in wanted.items():
    axes = tuple(range(1 if SHAPES[name][1][0] == 'layers' else 0, w.ndim))
    size = np.sqrt(np.mean(np.square(w), axis=axes, keepdims=True))
    differences[name] = np.max(np.abs(got[name] - w) / np.maximum(size, 1e-3))
  return differences


@pytest.fixture(scope='module')
def wanted():
  return reference_run(make_params())


@pytest.mark.parametrize('scanned', [True, False])
def test_every_layer_follows_the_rule(scanned):
  """Of an unscanned model, which is plain Adafactor, too."""
  names = [n for n in SHAPES if scanned or SHAPES[n][1][0] != 'layers']
  params = make_params(names)
  axes = unflatten({name: SHAPES[name][1] for name in names})
  got = flatten(run(optimizer.adafactor(axes, rate), params))
  differences = worst(got, reference_run(params))
  assert max(differences.values()) < 1e-6, differences


@pytest.mark.parametrize(
  'coefficients', [None, optimizer.coefficient_adam(0.1)]
)
def test_agrees_with_t5x(wanted, coefficients, t5x_module, record_property):
  theirs = t5x_module('t5x.adafactor')
  params = make_params()
  rules = theirs.standard_logical_factor_rules()
  definition = theirs.Adafactor(decay_rate=0.8, logical_factor_rules=rules)
  definition.set_param_axes(
    unflatten({k: PartitionSpec(*axes) for k, (_, axes) in SHAPES.items()})
  )
  state = definition.init_state(params)
  p = params
  for step in range(STEPS):
    hyper = definition.hyper_params.replace(learning_rate=rate(step))
    p, state = definition.apply_gradient(
      hyper, p, state, make_gradients(params, step)
    )
  ours = moved(params, coefficients=coefficients)
  theirs = jax.device_get(flatten(p))
  if coefficients is not None:  # t5x has no group for them: all others agree.
    theirs = {k: v for k, v in theirs.items() if not is_coefficient(k)}
  differences = worst(ours, theirs)
  record_property('largest_difference', float(max(differences.values())))
  print('largest difference to t5x:', max(differences.values()))
  assert max(differences.values()) < 1e-6, differences


def test_coefficients_follow_adam_and_the_rest_does_not_notice(wanted):
  params = make_params()
  got = moved(params, coefficients=optimizer.coefficient_adam(3e-3))
  differences = worst(got, wanted)
  start = flatten(params)
  for name in SHAPES:
    if not is_coefficient(name):
      assert differences[name] < 1e-6, name
      continue
    w = start[name].astype(np.float64)
    m = v = 0.0
    for step in range(STEPS):
      g = flatten(make_gradients(params, step))[name].astype(np.float64)
      m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
      t = step + 1
      w = w - 3e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
    np.testing.assert_allclose(got[name], w, rtol=1e-5, atol=1e-7)


def test_weight_decay_is_the_coefficients_alone():
  params = make_params()
  runs = [
    moved(
      params, 1, coefficients=optimizer.coefficient_adam(1e-2, weight_decay=d)
    )
    for d in (0.0, 0.1)
  ]
  for name, w in flatten(params).items():
    change = runs[1][name] - runs[0][name]
    if is_coefficient(name):
      np.testing.assert_allclose(change, -1e-3 * w, rtol=1e-3, atol=1e-6)
    else:
      assert not np.any(change), name


def test_coefficients_have_a_schedule_of_their_own():
  params = make_params()
  before = flatten(params)
  tx = optimizer.adafactor(
    AXES,
    lambda step: 0.0,
    coefficients=optimizer.coefficient_adam(lambda step: 0.01 * (step > 0)),
  )
  still, moved = (flatten(run(tx, params, steps)) for steps in (1, 2))
  for name in SHAPES:
    assert not np.any(still[name] != before[name]), name
    assert np.all(moved[name] != before[name]) == is_coefficient(name), name


def _state_paths(tx, params):
  return [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(tx.init(params))
  ]


def test_no_coefficients_no_group():
  names = [name for name in SHAPES if not is_coefficient(name)]
  axes = unflatten({name: SHAPES[name][1] for name in names})
  params = make_params(names)
  adam = optimizer.coefficient_adam(1e-3)
  with_adam = optimizer.adafactor(axes, rate, coefficients=adam)
  without = optimizer.adafactor(axes, rate)
  assert _state_paths(with_adam, params) == _state_paths(without, params)


def test_every_parameter_has_state_once():
  """Nothing is left out, nothing is kept twice: memory is what it should be."""
  params = make_params()
  adam = optimizer.coefficient_adam(1e-3)
  state = optimizer.adafactor(AXES, rate, coefficients=adam).init(params)
  sizes = dict.fromkeys(SHAPES, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    for name in SHAPES:
      if '/'.join(map(str, keys)).endswith(name):
        sizes[name] += leaf.size
  for name, (shape, axes) in SHAPES.items():
    size = int(np.prod(shape))
    if is_coefficient(name):
      expected = 2 * size  # Adam's two moments
    else:
      layers = shape[0] if axes[0] == 'layers' else 1
      layer = shape[1:] if axes[0] == 'layers' else shape
      factored = len(layer) == 2 and min(layer) >= 128
      # Where V is kept one way, the other has a placeholder of one number.
      expected = layers * (sum(layer) + 1 if factored else size // layers + 2)
    assert sizes[name] == expected, name


def test_a_zero_gradient_changes_nothing():
  params = make_params()
  tx = optimizer.adafactor(
    AXES, rate, coefficients=optimizer.coefficient_adam(1e-3)
  )
  zeros = jax.tree.map(jnp.zeros_like, params)
  moved = run(tx, params, steps=2, gradients=lambda step: zeros)
  jax.tree.map(np.testing.assert_array_equal, moved, params)


def test_what_is_frozen_stays_and_the_rest_does_not_notice():
  adam = optimizer.coefficient_adam(optax.constant_schedule(1e-2))
  params = make_params()
  free, bound = (
    moved(params, coefficients=adam, frozen=frozen)
    for frozen in (None, 'token_embedder|decoder/.*/activation')
  )
  start = flatten(params)
  for name, value in bound.items():
    still = name.startswith('token') or name.startswith('decoder/layers/act')
    np.testing.assert_array_equal(value, start[name] if still else free[name])
    assert still or (value != start[name]).any()


def test_what_trains_is_counted_and_listed():
  params = make_params()
  first, *lines = optimizer.what_trains('token|decoder/.*/activation', params)
  flat = flatten(params)
  trains = {
    name: value.size
    for name, value in flat.items()
    if 'token' not in name and not name.startswith('decoder/layers/act')
  }
  total = sum(value.size for value in flat.values())
  assert f'{sum(trains.values()):,} of {total:,} parameters train' in first
  assert sorted(', '.join(lines).replace(' ', '').split(',')) == sorted(trains)
  unrolled = {f'a/layers_{n}/b': np.zeros(2) for n in range(3)} | {
    'c': np.ones(1)
  }
  assert optimizer.what_trains(
    'c', traverse_util.unflatten_dict(unrolled, '/')
  )[1:] == ['  a/layers_*/b']
  assert optimizer.what_trains(None, params) == []


@pytest.mark.parametrize(
  ('frozen', 'message'),
  [('nothing_such', 'no name'), ('e', 'all names'), ('(', 'no regular expr')],
)
def test_a_slip_of_frozen_is_refused(frozen, message):
  with pytest.raises(errors.UserError, match=message):
    optimizer.adafactor(AXES, rate, frozen=frozen)
