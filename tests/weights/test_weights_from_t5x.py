"""Checkpoints that t5x itself wrote: bash tools/test.sh --t5x."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import t5_config
from flax import traverse_util
from flax.core import unfreeze

from t5x_variants.model import network, parameters
from t5x_variants.weights import matching, t5x

pytestmark = [pytest.mark.t5x, pytest.mark.filterwarnings('ignore')]
VOCAB = 64
SIZES = {
  'vocab_size': VOCAB,
  'emb_dim': 8,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'head_dim': 4,
  'mlp_dim': 12,
  'dropout_rate': 0.0,
  'dtype': 'float32',
}


def ours(**options):
  return network.Transformer(t5_config(**SIZES | options))


@pytest.fixture
def write(t5x_module, tmp_path):
  """Makes t5x write a step of a network, with random parameters."""
  adafactor, checkpoints, models, partitioning, utils = (
    t5x_module(f't5x.{name}')
    for name in ('adafactor', 'checkpoints', 'models', 'partitioning', 'utils')
  )
  vocabulary = t5x_module('seqio').PassThroughVocabulary(VOCAB)
  partitioner = partitioning.PjitPartitioner(
    num_partitions=None, model_parallel_submesh=(1, 1, 1, 1)
  )
  names = ('encoder_input', 'decoder_input', 'decoder_target')
  shapes = {f'{n}_tokens': (8, 8) for n in names}

  def act(module, form, step):
    model = models.EncoderDecoderModel(
      module,
      vocabulary,
      vocabulary,
      adafactor.Adafactor(
        decay_rate=0.8,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
      ),
    )
    initializer = utils.TrainStateInitializer(
      model.optimizer_def,
      model.get_initial_variables,
      shapes | {'decoder_loss_weights': (8, 8)},
      partitioner,
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    generator = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: jnp.asarray(x + 0.1 * generator.normal(size=x.shape), x.dtype),
      unfreeze(state.params),
    )
    state = state.replace_params(params).replace_step(jnp.int32(step))
    shape = initializer.global_train_state_shape
    if form == 'legacy':
      checkpoints.Checkpointer(shape, partitioner, str(tmp_path)).save(state)
    else:
      # It writes beside the folder it is given.
      folder = str(tmp_path / 'x')
      manager = checkpoints.OrbaxCheckpointManagerInterface(
        folder, shape, partitioner
      )
      manager.save(state)
      manager.wait_until_finished()
    return params

  return act


def logits(module, params):
  generator = np.random.default_rng(0)
  tokens = [generator.integers(1, VOCAB, (2, 8)) for _ in range(3)]
  apply = jax.jit(functools.partial(module.apply, enable_dropout=False))
  return apply({'params': params}, *tokens)


@pytest.mark.parametrize('form', ['legacy', 'orbax'])
@pytest.mark.parametrize('tied', [False, True])
def test_t5_1_1_as_t5x_wrote_it_gives_its_logits(
  write, t5x_module, form, tied, tmp_path
):
  t5 = t5x_module('t5x.examples.t5.network')
  config = t5.T5Config(
    **SIZES, mlp_activations=('gelu', 'linear'), logits_via_embedding=tied
  )
  module = t5.Transformer(config)
  written = write(module, form, 11)
  found = t5x.open_checkpoint(str(tmp_path))
  assert found.step == 11
  model = ours(logits_via_embedding=tied, scan_layers=True)
  params = matching.exact(found, parameters.shapes_and_axes(model)[0], '')
  np.testing.assert_allclose(
    logits(model, params), logits(module, written), rtol=0, atol=1e-5
  )


# t5x initialises with tokens of float32.
@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize('form', ['legacy', 'orbax'])
@pytest.mark.parametrize('scan', [False, True])
def test_our_network_as_t5x_wrote_it(write, form, scan, tmp_path):
  """Coefficients too, and scanned layers into unrolled ones."""
  written = write(ours(activation='rational', scan_layers=scan), form, 3)
  found = t5x.open_checkpoint(str(tmp_path))
  model = ours(activation='rational', scan_layers=not scan)
  params = matching.exact(found, parameters.shapes_and_axes(model)[0], '')
  change = network.stack_layers if scan else network.unstack_layers
  jax.tree.map(np.testing.assert_array_equal, change(params), written)
  flat = traverse_util.flatten_dict(params, sep='/')
  assert sum('/activation/' in name for name in flat) == (8 if scan else 4)
