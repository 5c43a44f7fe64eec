"""A run directory belongs to one run; what else changes is named."""

import pathlib
import shutil

import gin
import pytest

from t5x_variants import errors
from t5x_variants.cli import gin_utils
from t5x_variants.run_dir import changes, records
from t5x_variants.training import trainer

# As it was written for the run of `finished` before the configs were grouped.
EARLIER = pathlib.Path(__file__).parents[1] / 'support' / 'config_earlier.gin'
FILES = ['models/tiny', 'data/prepared', 'runs/pretrain']
SMALL = [
  'BATCH_SIZE=8',
  'EVAL_STEPS=1',
  'CHECKPOINT_PERIOD=2',
  'LOG_PERIOD=1',
  'NUM_MICROBATCHES=1',
  'MLP_DIM=24',
  'network.T5Config.emb_dim=8',
  'network.T5Config.num_heads=1',
  'network.T5Config.head_dim=8',
  'network.T5Config.num_encoder_layers=1',
  'network.T5Config.num_decoder_layers=1',
]


def start(folder, variant='relu', *bindings, steps=4):
  """Trains as the command does, with a model that is very small."""
  gin.clear_config()
  files = [f'gin/{name}.gin' for name in [*FILES, f'variants/{variant}']]
  chosen = [f"MODEL_DIR='{folder}'", f'TRAIN_STEPS={steps}']
  gin_utils.parse(files, [*SMALL, *chosen, *bindings])
  gin_utils.configured(trainer.train)(operative_config=gin.operative_config_str)


def content(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished') / 'run'
  start(folder)
  return folder


@pytest.mark.parametrize(
  'steps, variant, binding, words',
  [  # Finished after step 4, and to be gone on with to step 8.
    (4, 'gelu', None, "of ReLU, and this one is of GELU: .*'relu' and is now"),
    (8, 'squared_relu', None, 'of ReLU, and this one is of Squared ReLU'),
    (4, 'relu', 'RANDOM_SEED=1', 'RANDOM_SEED was 0 and is now 1'),
    (8, 'relu', 'BATCH_SIZE=16', 'BATCH_SIZE was 8 and is now 16'),
    (4, 'relu', 'PACK=False', 'PACK was True and is now False'),
    (
      8,
      'relu',
      "TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 114}",
      'TASK_FEATURE_LENGTHS was None and is now',
    ),
  ],
)
def test_another_run_is_refused_and_nothing_changes(
  finished, steps, variant, binding, words
):
  before = content(finished)
  with pytest.raises(errors.UserError, match=words) as error:
    start(finished, variant, *filter(None, [binding]), steps=steps)
  assert f'MODEL_DIR {finished} holds another run' in str(error.value)
  assert content(finished) == before


def test_a_run_of_an_earlier_version_goes_on(finished, tmp_path, capsys):
  """Its config.gin has the modules and parameters of that version."""
  folder = shutil.copytree(finished, tmp_path / 'run')
  shutil.copy(EARLIER, folder / 'config.gin')
  with pytest.raises(errors.UserError, match='of ReLU, and this one is of GE'):
    start(folder, 'geglu', steps=6)
  with pytest.raises(errors.UserError, match='RANDOM_SEED was 0'):
    start(folder, 'relu', 'RANDOM_SEED=1', steps=6)
  start(folder, 'relu', 'Z_LOSS=0.0', steps=6)
  assert [r['step'] for r in records.read(folder, 'train')] == list(range(1, 7))
  said = capsys.readouterr().err
  assert (
    'Changed since step 4: TRAIN_STEPS was 4 and is now 6; Z_LOSS was 0.0001 '
    'and is now 0.0.' in said
  )
  gin.clear_config()
  model, _ = gin_utils.read_model([str(folder / 'config-4.gin')])
  assert model.config.emb_dim == 8


def test_a_configuration_of_an_earlier_version_is_a_gin_file(
  finished, tmp_path, capsys
):
  folder = shutil.copytree(finished, tmp_path / 'run')
  start(folder, steps=5)  # In the names of today.
  capsys.readouterr()
  gin.clear_config()
  gin_utils.parse([str(EARLIER)], [f"MODEL_DIR='{folder}'", 'TRAIN_STEPS=6'])
  gin_utils.configured(trainer.train)(operative_config=gin.operative_config_str)
  said = capsys.readouterr().err
  assert 'Changed since step 5: TRAIN_STEPS was 5 and is now 6.\n' in said


def test_a_person_s_own_file_of_an_earlier_version_is_read(tmp_path):
  """With a comment first, and no newline at its end."""
  gin.clear_config()
  own = tmp_path / 'own.gin'
  own.write_text(
    '# My run.\nfrom __gin__ import dynamic_registration\n'
    'from t5x_variants import trainer\ntrainer.train.z_loss = 0.5'
  )
  gin_utils.parse([str(own)], [])
  assert gin.query_parameter('programs.OptimizationConfig.z_loss') == 0.5
  link = gin.query_parameter('trainer.train.optimization')
  assert link.configurable.name == 'OptimizationConfig'


def test_a_finished_run_is_left_as_it_is(finished, capsys):
  before = content(finished)
  start(finished, 'relu', 'Z_LOSS=0.0')
  assert 'Nothing to do' in capsys.readouterr().err
  assert content(finished) == before


def test_other_changes_are_named_and_the_earlier_settings_kept(
  tmp_path, capsys
):
  folder = tmp_path / 'run'
  start(folder, steps=2)
  first = (folder / 'config.gin').read_text()
  capsys.readouterr()
  start(folder, 'relu', 'Z_LOSS=0.0', 'LEARNING_RATE=0.5', steps=4)
  said = capsys.readouterr().err
  assert (
    'Changed since step 2: LEARNING_RATE was 1.0 and is now 0.5; TRAIN_STEPS '
    'was 2 and is now 4; Z_LOSS was 0.0001 and is now 0.0.'
  ) in said
  assert 'differ from one that was started with TRAIN_STEPS=4' in said
  assert (folder / 'config-2.gin').read_text() == first
  assert 'Z_LOSS = 0.0\n' in (folder / 'config.gin').read_text()
  assert [r['step'] for r in records.read(folder, 'train')] == [1, 2, 3, 4]


CONFIG = """
from t5x_variants.activations import rational
from t5x_variants.model import network
ACTIVATION = @rational.rational()
TRAIN_STEPS = 10
trainer.train.model = @network.Transformer()
trainer.train.train_dataset = @train/data.DatasetConfig()
trainer.train.eval_dataset = @eval/data.DatasetConfig()
trainer.train.total_steps = %TRAIN_STEPS
train/data.DatasetConfig.mixture_or_task_name = @tasks.span_corruption()
tasks.span_corruption.noise_density = 0.15
tasks.span_corruption.source = @corpora.embedded()
eval/data.DatasetConfig.num_epochs = 1
network.Transformer.config = @network.T5Config()
MODEL/network.T5Config.activation = %ACTIVATION
MODEL/network.T5Config.dropout_rate = 0.0
MODEL/network.T5Config.mlp_dim = \\
    @mlp.width()
MODEL/mlp.width.mlp_dim = 384
ACTIVATION/rational.rational.version = 'A'
schedules.rsqrt.warmup_steps = 1000
"""


@pytest.mark.parametrize(
  'old, new',
  [
    ("version = 'A'", "version = 'B'"),
    ('= @rational.rational()', "= 'gelu'"),
    ('noise_density = 0.15', 'noise_density = 0.5'),
    ('@corpora.embedded()', '@corpora.text_files()'),
    ('mlp_dim = 384', 'mlp_dim = 192'),
  ],
)
def test_what_makes_another_run(old, new):
  assert CONFIG.count(old) == 1
  other_run, others = changes.between(CONFIG, CONFIG.replace(old, new))
  assert len(other_run) == 1 and not others


@pytest.mark.parametrize(
  'old, new, text',
  [
    (
      'TRAIN_STEPS = 10',
      'TRAIN_STEPS = 20',
      'TRAIN_STEPS was 10 and is now 20',
    ),
    (
      'dropout_rate = 0.0',
      'dropout_rate = 0.1',
      'MODEL/T5Config.dropout_rate was 0.0 and is now 0.1',
    ),
    ('num_epochs = 1', 'num_epochs = 2', 'eval/DatasetConfig.num_epochs was 1'),
    (
      'warmup_steps = 1000',
      'warmup_steps = 10',
      'rsqrt.warmup_steps was 1000 and is now 10',
    ),
  ],
)
def test_what_is_only_named(old, new, text):
  other_run, others = changes.between(CONFIG, CONFIG.replace(old, new))
  assert not other_run and len(others) == 1 and others[0].startswith(text)


def test_other_names_of_modules_and_new_parameters_are_no_change():
  same = (
    CONFIG.replace('network.', 'model.network.')
    .replace('rational.rational', 'activations.rational.rational')
    .replace('trainer.train.', 't5x_variants.training.trainer.train.')
  )
  assert same != CONFIG
  assert changes.between(CONFIG, same) == ([], [])
  more = CONFIG + 'schedules.rsqrt.new_parameter = 3\n'
  assert changes.between(CONFIG, more) == ([], [])
