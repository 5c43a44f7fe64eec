"""The FLOP formula against a count of the matmuls in the traced program."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from configs import t5_config

from t5x_variants import chips
from t5x_variants.model import flops, network, parameters
from t5x_variants.training import train_step

SIZES = {
  'vocab_size': 256,
  'emb_dim': 96,
  'num_heads': 4,
  'head_dim': 16,
  'mlp_dim': 160,
  'num_encoder_layers': 3,
  'num_decoder_layers': 2,
  'dropout_rate': 0.0,
  'scan_layers': True,
}
ROWS, INPUTS, TARGETS = 4, 24, 8


def matmul_flops(jaxpr):
  """Two for each multiplication of every dot_general, loops walked through."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      left = equation.invars[0].aval.shape
      contracted = equation.params['dimension_numbers'][0][0]
      result = math.prod(equation.outvars[0].aval.shape)
      total += 2 * result * math.prod(left[axis] for axis in contracted)
    trips = equation.params.get('length', 1)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      total += trips * matmul_flops(inner)
  return total


def traced(config):
  """Matmul FLOPs of the forward pass, and of value and gradient."""
  model = network.Transformer(config)
  params, _ = parameters.shapes_and_axes(model)
  batch = {
    name: jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
    for name, length in (
      ('encoder_input_tokens', INPUTS),
      ('decoder_input_tokens', TARGETS),
      ('decoder_target_tokens', TARGETS),
      ('decoder_loss_weights', TARGETS),
    )
  }

  def objective(params, batch):
    return train_step.forward(model, params, batch)[0]

  return (
    matmul_flops(jax.make_jaxpr(objective)(params, batch).jaxpr),
    matmul_flops(jax.make_jaxpr(jax.grad(objective))(params, batch).jaxpr),
  )


def lookups(config):
  """Embeddings and position biases: matmuls here, left out by the formula."""
  biases = 2 * 32 * config.num_heads * (INPUTS**2 + TARGETS**2)
  return biases + 2 * ROWS * (INPUTS + TARGETS) * config.vocab_size * (
    config.emb_dim
  )


@pytest.mark.parametrize('gated', [False, True])
def test_the_formula_counts_the_matmuls(gated):
  config = t5_config(**SIZES, activation='gelu', gated=gated)
  counted = flops.forward(config, ROWS, INPUTS, TARGETS)
  once, both = traced(config)
  assert counted.total + lookups(config) == once
  # A table's gradient is a second matmul; that of its one-hot rows is none.
  # The sum of the biases' gradient over the rows is another one.
  expected = flops.train_step(config, ROWS, INPUTS, TARGETS).total
  assert expected == 3 * counted.total
  assert 1 <= both / (expected + 2 * lookups(config)) < 1.01


def test_the_parts_belong_to_their_tokens():
  config = t5_config(**SIZES)
  base = flops.forward(config, ROWS, INPUTS, TARGETS)
  longer = flops.forward(config, ROWS, INPUTS, 2 * TARGETS)
  assert longer.encoder == base.encoder
  assert longer.decoder > 2 * base.decoder
  assert flops.forward(config, 2 * ROWS, INPUTS, TARGETS).total == (
    2 * base.total
  )


def test_utilisation_is_of_the_devices_peak():
  # A 7x chip is two devices, each half of it.
  assert flops.mfu(2307e12, 2.0, 2, 'TPU7x') == pytest.approx(0.5)
  assert flops.mfu(197e12 * 8, 4.0, 8, 'TPU v5 lite') == pytest.approx(0.25)
  assert flops.mfu(1.0, 1.0, 1, 'cpu') is None


def test_what_a_program_may_have_is_near_what_the_vendor_gives():
  for chip in chips.GENERATIONS.values():
    assert 0.93 < chip.usable * chip.devices / chip.hbm < 1.01
