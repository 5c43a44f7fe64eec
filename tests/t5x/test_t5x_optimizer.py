"""The coefficients' own group in t5x's optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import freeze, unfreeze
from quick_jit import jit
from t5x_cases import SIZES, batch, model, randomised

from t5x_variants import errors, for_t5x
from t5x_variants.data.text import vocabularies


@pytest.fixture
def start(t5x_module):
  """Makes t5x's state of a module, with one Adafactor or with two."""
  adafactor, models, states = (
    t5x_module(f't5x.{m}') for m in ('adafactor', 'models', 'train_state')
  )

  def start(module, params, rate=None, tokens=None):
    """Two groups when `rate` is given."""
    rule = for_t5x.optimizer(
      adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=for_t5x.factor_rules()
      ),
      rate and for_t5x.coefficient_adafactor(rate),
    )
    model = models.EncoderDecoderModel(
      module=module,
      input_vocabulary=vocabularies.byte(),
      output_vocabulary=vocabularies.byte(),
      optimizer_def=rule,
    )
    variables = jax.eval_shape(
      functools.partial(
        model.get_initial_variables,
        input_shapes={k: v.shape for k, v in batch().items()},
      ),
      jax.random.key(0),
    )
    return states.FlaxOptimTrainState.create(
      rule, freeze(unfreeze(variables) | {'params': params})
    )

  return start


def gradients(params, step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32),
    params,
  )


@jit
def update(state, gradient):
  return state.apply_gradient(gradient, learning_rate=0.3)


def flat(tree):
  return traverse_util.flatten_dict(unfreeze(tree), sep='/')


def at_the_rate(values, gradients, rates):
  """The rule that coefficient_adafactor states, in float64, layer by layer."""
  values, v = values.astype(np.float64), 0.0
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
    gradient = gradient.astype(np.float64)
    beta = 1 - (t + 1) ** -0.8
    v = beta * v + (1 - beta) * gradient**2
    u = gradient / np.sqrt(v)
    rms = np.sqrt(np.mean(u**2, -1, keepdims=True))
    values = values - rate * u / np.maximum(1, rms)
  return values


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'name, gated, scan',
  [
    ('rational', True, False),
    ('polynorm', False, True),
    ('gelu', True, False),
    ('theirs', True, False),
  ],
)
def test_coefficients_take_absolute_steps_and_nothing_else_changes(
  name, gated, scan, start, t5x_module
):
  """The rate is not the trainer's; a restart from a state's dict is exact."""
  module = model(
    activation='rational' if name == 'theirs' else name,
    gated=gated,
    scan_layers=scan,
  )
  params = randomised(module)
  if name == 'theirs':
    theirs = t5x_module('t5x.examples.t5.network')
    activation = for_t5x.mlp_activations('rational', gated)
    module = theirs.Transformer(
      theirs.T5Config(**SIZES, mlp_activations=activation)
    )
  rates = [0.01, 0.02, 0.03, 0.0]
  one = start(module, params)
  two = start(module, params, lambda step: jnp.asarray(rates)[step])
  assert jax.tree.map(jnp.shape, one.state_dict()) == jax.tree.map(
    jnp.shape, two.state_dict()
  )
  steps = [gradients(params, step) for step in range(4)]
  for step, gradient in enumerate(steps):
    if step == 2:
      again = start(module, params, lambda step: jnp.asarray(rates)[step])
      two = again.restore_state(two.state_dict())
    one, two = update(one, gradient), update(two, gradient)
  learned = 0
  for path, value in flat(two.params).items():
    if '/activation/' not in path:
      np.testing.assert_array_equal(value, flat(one.params)[path], path)
      continue
    learned += 1
    want = at_the_rate(
      np.asarray(flat(params)[path]), [flat(g)[path] for g in steps], rates
    )
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6, err_msg=path)
  assert learned == {'gelu': 0, 'polynorm': 4}.get(name, 6)


@pytest.mark.filterwarnings('ignore')
def test_a_group_that_t5x_cannot_have(t5x_module):
  adafactor = t5x_module('t5x.adafactor').Adafactor()
  assert for_t5x.optimizer(adafactor) is adafactor
  adam = t5x_module('t5x.optimizers').adam(1e-3)
  own = for_t5x.coefficient_adafactor(lambda step: 1e-3)
  with pytest.raises(errors.UserError, match='set OPTIMIZER to your own'):
    for_t5x.optimizer(adam, own)
