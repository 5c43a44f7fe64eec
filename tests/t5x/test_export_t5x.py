"""The way back into t5x: what export_t5x writes, and what it refuses."""

import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import traverse_util
from flax.core import unfreeze
from quick_jit import jit
from t5x_cases import batch, randomised

from t5x_variants import errors, export_t5x, for_t5x
from t5x_variants.cli import gin_utils
from t5x_variants.data.text import vocabularies
from t5x_variants.model import network
from t5x_variants.run_dir import layout
from t5x_variants.weights import saved, t5x

FILES = ('gin/models/tiny.gin', 'gin/variants/{}.gin')
# Some matrices are large enough for t5x to factor, others are not.
SIZES = (
  'VOCAB_SIZE = 128',
  'MLP_DIM = 192',
  'network.T5Config.num_heads = 2',
  'network.T5Config.head_dim = 16',
  'network.T5Config.num_decoder_layers = 1',
)
STEP = 7


@pytest.fixture
def run(tmp_path):
  """Makes a run of random parameters; returns its model and these."""

  def run(variant, *bindings):
    model, config = gin_utils.read_model(
      [file.format(variant) for file in FILES], [*SIZES, *bindings]
    )
    params = jax.tree.map(np.asarray, randomised(model))
    saved.write(tmp_path / 'run', STEP, params, config)
    return model, params

  return run


def export(tmp_path, **values):
  """Runs the command, in this process."""
  defaults = {
    'run': str(tmp_path / 'run'),
    'output': str(tmp_path / 'out'),
    'gin_file': [],
    'gin_bindings': [],
    'gin_search_paths': [],
    'dry_run': False,
  }
  gin.clear_config()
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**defaults | values):
    export_t5x.main()
  return tmp_path / 'out' / f'checkpoint_{STEP}'


def flat(tree):
  return traverse_util.flatten_dict(unfreeze(tree), sep='/')


def shapes_of(tree):
  return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


@pytest.mark.parametrize(
  'scan, unrolled', [(False, False), (True, False), (True, True)]
)
def test_import_t5x_reads_back_what_was_exported(
  scan, unrolled, run, tmp_path, capsys
):
  """Scanned layers one by one on request."""
  _, params = run('rational_glu', f'SCAN_LAYERS = {scan}')
  asked = ['SCAN_LAYERS = False'] if unrolled else []
  step = export(tmp_path, gin_bindings=asked)
  assert f'INITIAL_CHECKPOINT_PATH="\'{step}\'"' in capsys.readouterr().err
  found = t5x.open_checkpoint(str(step))
  assert found.step == STEP
  values = found.read()
  want = flat(network.unstack_layers(params) if unrolled else params)
  assert values.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(values[name], value, name)
  # As text, it says what it is of.
  assert saved.variant_of(layout.settings(step.parent)) == 'Rational GLU'


@pytest.mark.parametrize(
  'values, message',
  [
    ({'run': None}, '--run=DIR is missing'),
    ({'output': None}, '--output=DIR is missing'),
    ({'output': 'gs://bucket/out'}, 'remote storage'),
    ({'output': '{}/run'}, 'is there already'),
    ({'run': '{}'}, 'holds no checkpoint of t5x_variants'),
    ({'run': '{}/run/config.gin'}, 'holds no checkpoint of t5x_variants'),
    ({'gin_bindings': ['MLP_DIM = 384']}, 'not a checkpoint of this model'),
    (
      {'gin_file': ['gin/models/tiny.gin', 'gin/variants/relu.gin']},
      'a checkpoint of GELU, the gin files are of ReLU',
    ),
    ({'gin_file': ['gin/models/tiny.gin']}, 'gin/variants/Y.gin'),
  ],
)
def test_slips_end_in_a_sentence_and_nothing_is_written(
  values, message, run, tmp_path
):
  run('gelu')
  if 'gin_file' in values:
    values = values | {'gin_bindings': list(SIZES)}
  values = {
    k: v.format(tmp_path) if isinstance(v, str) else v
    for k, v in values.items()
  }
  with pytest.raises(errors.UserError, match=message):
    export(tmp_path, **values)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


def test_a_run_without_its_configuration(run, tmp_path):
  run('gelu')
  (tmp_path / 'run' / 'config.gin').unlink()
  with pytest.raises(errors.UserError, match=r'config.gin, .* does not exist'):
    export(tmp_path)
  files = [file.format('gelu') for file in FILES]
  assert export(tmp_path, gin_file=files, gin_bindings=list(SIZES)).is_dir()


# With t5x itself.


@pytest.fixture
def restored(t5x_module, monkeypatch):
  """t5x's state of a model, restored from a checkpoint; and its model."""
  adafactor, checkpoints, models, partitioning, utils = (
    t5x_module(f't5x.{name}')
    for name in ('adafactor', 'checkpoints', 'models', 'partitioning', 'utils')
  )

  def restored(module, step, rate=None):
    rule = for_t5x.optimizer(
      adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=for_t5x.factor_rules()
      ),
      rate and for_t5x.coefficient_adafactor(lambda step: rate),
    )
    model = models.EncoderDecoderModel(
      module, vocabularies.byte(), vocabularies.byte(), rule
    )
    partitioner = partitioning.PjitPartitioner(
      model_parallel_submesh=(1, 1, 1, 1)
    )
    initializer = utils.TrainStateInitializer(
      rule,
      model.get_initial_variables,
      {k: v.shape for k, v in batch().items()},
      partitioner,
    )
    shapes = initializer.global_train_state_shape
    # Orbax could cut or fill an array of another shape without an error.
    with ocp.StandardCheckpointer() as reader:
      written = reader.metadata(step / 'state').item_metadata.tree
    assert shapes_of(written) == shapes_of(shapes.state_dict())
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(step), shapes, partitioner
    )
    return manager.restore(path=str(step)), model

  return restored


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'variant, scan, rate',
  [
    ('rational_glu', False, 0.01),
    ('polynorm', True, 0.01),
    ('gelu', True, None),
  ],
)
def test_t5x_restores_it_and_trains_on(
  variant, scan, rate, run, restored, t5x_module, tmp_path
):
  trainer = t5x_module('t5x.trainer')
  module, params = run(variant, f'SCAN_LAYERS = {scan}')
  state, model = restored(module, export(tmp_path), rate)
  assert int(state.step) == STEP
  jax.tree.map(np.testing.assert_array_equal, unfreeze(state.params), params)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.param_states))
  apply = jit(functools.partial(module.apply, enable_dropout=False))
  tokens = [
    batch()[f'{name}_tokens']
    for name in ('encoder_input', 'decoder_input', 'decoder_target')
  ]
  np.testing.assert_array_equal(
    apply({'params': state.params}, *tokens), apply({'params': params}, *tokens)
  )
  train = jit(
    functools.partial(
      trainer.train_with_lr,
      model=model,
      learning_rate=0.02,
      dropout_rng=jax.random.key(0),
      num_microbatches=1,
    )
  )
  losses = []
  for _ in range(5):
    state, metrics = train(state, batch())
    losses.append(float(metrics['loss'].total))
  print(variant, losses)
  assert int(state.step) == STEP + 5
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.filterwarnings('ignore')
def test_t5x_s_own_network_takes_it(run, restored, t5x_module, tmp_path):
  """Unrolled layers; the activation through T5Config.mlp_activations."""
  theirs = t5x_module('t5x.examples.t5.network')
  ours, params = run('rational_glu')
  sizes = 'vocab_size emb_dim num_heads head_dim mlp_dim'.split()
  sizes += ['num_encoder_layers', 'num_decoder_layers']
  config = theirs.T5Config(
    **{name: getattr(ours.config, name) for name in sizes},
    mlp_activations=for_t5x.mlp_activations(
      ours.config.feed_forward.activation, True
    ),
  )
  state, _ = restored(theirs.Transformer(config), export(tmp_path))
  tokens = [jnp.asarray(batch()['encoder_input_tokens'])] * 3
  one, two = (
    jit(functools.partial(module.apply, enable_dropout=False))(
      {'params': values}, *tokens
    )
    for module, values in (
      (ours, params),
      (theirs.Transformer(config), state.params),
    )
  )
  np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
