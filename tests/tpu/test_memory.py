"""The memory estimate and the suggestions, on plans for simulated devices."""

import dataclasses
import shlex

import jax
import optax
import pytest
from configs import t5_config

from t5x_variants import chips, errors
from t5x_variants.model import decoding, network
from t5x_variants.tpu import compiling, memory, report
from t5x_variants.training import programs

CHIP = chips.CHIPS['TPU v5e']
SIZES = {
  'vocab_size': 1024,
  'emb_dim': 256,
  'num_heads': 8,
  'head_dim': 32,
  'mlp_dim': 512,
  'num_encoder_layers': 6,
  'num_decoder_layers': 6,
  'dropout_rate': 0.0,
  'dtype': 'bfloat16',
  'scan_layers': True,
}


def plan(config=None, num_microbatches=1, **settings):
  return compiling.Plan(
    **{
      'model': network.Transformer(t5_config(**SIZES | (config or {}))),
      # Its state is nothing, as Adafactor's nearly is; tracing that costs.
      'optimization': programs.OptimizationConfig(
        lambda axes, rate: optax.sgd(rate), lambda step: 0.01, num_microbatches
      ),
      'batch_size': 128,
      'feature_lengths': {'inputs': 512, 'targets': 114},
      'decoder': decoding.greedy,
      'model_axis_size': 1,
    }
    | settings
  )


@pytest.fixture
def aot(monkeypatch):
  """An AotProgram on eight devices that pass for v5e chips."""
  monkeypatch.setattr(compiling.AotProgram, 'device_kind', 'TPU v5e')

  def build(config=None, **settings):
    return compiling.AotProgram(plan(config, **settings), jax.devices())

  return build


def total(made):
  return memory.estimate_of(made).total


def test_what_saves_memory_lowers_the_estimate(aot):
  base = total(aot())
  for policy in ('minimal', 'full'):
    less = total(aot({'remat_policy': policy}))
    assert less < base
    base = less
  base = total(aot())
  assert total(aot(num_microbatches=4)) < base
  assert total(aot(model_axis_size=2, batch_size=64)) < base
  assert total(aot(batch_size=256)) > base
  sharded = aot(parameter_partitioning_dims=2)
  assert sharded.sizes().params * 7 < aot().sizes().params
  gradients = memory.estimate_of(aot()).gradients
  assert memory.estimate_of(sharded).gradients * 7 < gradients


def test_the_state_s_bytes_are_those_of_a_state(aot):
  made = aot(model_axis_size=2)
  by_hand = sum(
    leaf.size * 4 // (2 if 'model' in leaf.sharding.spec else 1)
    for leaf in jax.tree.leaves(made.state.params)
  )
  assert made.sizes().params == by_hand
  assert made.sizes().count * 4 > by_hand


@pytest.mark.parametrize(
  'config, settings',
  [
    ({}, {'batch_size': 16384}),
    ({'remat_policy': 'full'}, {'batch_size': 65536}),
    ({'activation': 'rational'}, {'batch_size': 4096, 'num_microbatches': 2}),
    ({}, {'batch_size': 2**17, 'data_axis_size': 8}),
  ],
)
def test_a_cure_fits_and_is_what_its_flags_say(aot, config, settings):
  made = aot(config, **settings)
  assert total(made) > CHIP.usable
  found = memory.suggestion(made)
  assert found.memory.total * memory.MARGIN <= CHIP.usable
  values = {}
  for flag in found.flags:
    (word,) = shlex.split(flag)
    name, value = word.removeprefix('--gin.').split('=')
    values[name] = value.strip("'")
  changed_plan = found.plan
  assert values
  assert values.pop('REMAT_POLICY', made.plan.model.config.remat_policy) == (
    changed_plan.model.config.remat_policy
  )
  for name, value in values.items():
    assert str(getattr(changed_plan, name.lower())) == value
  # It holds for an AotProgram of its own, whose mesh and batch divide.
  again = compiling.AotProgram(changed_plan, jax.devices())
  assert total(again) == found.memory.total


def test_a_refusal_s_own_number_raises_the_bar(aot):
  made = aot(batch_size=2048, config={'remat_policy': 'minimal'})
  guessed = total(made)
  near = memory.suggestion(made)
  far = memory.suggestion(made, needed=4 * guessed)
  assert far.memory.total < near.memory.total


def test_no_suggestion_is_said_to_be_none(aot, monkeypatch):
  tiny = dataclasses.replace(CHIP, usable=2**20)
  monkeypatch.setitem(chips.CHIPS, 'TPU v5e', tiny)
  made = aot()
  assert memory.suggestion(made) is None
  text = report.out_of_memory_report(made, 'the estimate', total(made))
  assert 'DOES NOT FIT' in text and 'larger slice' in text
  assert memory.clearly_too_large(memory.estimate_of(made), tiny)


def test_the_compiler_s_figures_reach_the_report(aot, monkeypatch):
  """They come first in a message that is longer than what is shown."""
  refusal = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 20.50G of 15.75G hbm.' + ' More words.' * 50
  )

  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(refusal)

  monkeypatch.setattr(
    compiling.AotProgram, '_lowered', lambda self, program: Lowered()
  )
  with pytest.raises(compiling.DoesNotFit) as error:
    aot().compile('train')
  assert memory.asked_for(str(error.value)) == 20.5 * 2**30


@pytest.mark.parametrize(
  'words, size',
  [
    (
      'memory required for HLO temporaries (1.50T) exceeds available',
      1.5 * 2**40,
    ),
    (
      'Ran out of memory in memory space hbm. Used 20.5G of 15.75G',
      20.5 * 2**30,
    ),
    ('something else', None),
  ],
)
def test_the_refusal_is_read(words, size):
  assert memory.asked_for(words) == size


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'batch_size': 100}, 'BATCH_SIZE is 100.*for example 96'),
    ({'batch_size': 0}, 'BATCH_SIZE is 0'),
    ({'model_axis_size': 3}, 'MODEL_AXIS_SIZE is 3'),
    ({'data_axis_size': 4}, 'a mesh of 4 devices, but there are 8'),
    ({'config': {'scan_layers': False}}, 'gin.SCAN_LAYERS=True'),
    ({'programs': ('traim',)}, 'PROGRAMS is'),
    ({'feature_lengths': {'inputs': 512}}, 'TASK_FEATURE_LENGTHS'),
  ],
)
def test_what_cannot_be_is_refused(aot, settings, message):
  with pytest.raises(errors.UserError, match=message):
    aot(**settings)


def test_without_a_model_axis_the_batch_decides():
  few = plan(batch_size=4, model_axis_size=None)
  assert compiling.with_mesh(few, 8).model_axis_size == 2
  parts = plan(batch_size=4, model_axis_size=None, num_microbatches=2)
  assert compiling.with_mesh(parts, 8).model_axis_size == 4
  assert compiling.with_mesh(plan(model_axis_size=None), 8).model_axis_size == 1
