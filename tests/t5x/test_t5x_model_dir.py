"""A run directory under t5x stays that of one variant, model and task."""

import gin
import pytest

from t5x_variants import errors, for_t5x

CONFIG = """
from __gin__ import dynamic_registration
from t5x_variants.model import mlp
from t5x_variants.model import network
from t5x_variants.activations import rational
from t5x_variants.data.tasks import registry as tasks

# Macros:
# ==============================================================================
ACTIVATION = @rational.rational()
BATCH_SIZE = 16
DROPOUT_RATE = 0.0
GATED = True
MIXTURE_OR_TASK_NAME = @tasks.span_corruption()
MLP_DIM = 384
MODEL = @network.Transformer()
TEXT_FILES = \\
    '/data/*.txt'
VOCAB_SIZE = 384

# Parameters for mlp.width:
mlp.width.mlp_dim = %MLP_DIM
# Parameters for rational.rational:
rational.rational.version = 'A'
rational.rational.degrees = (5, 4)
# Parameters for tasks.span_corruption:
tasks.span_corruption.noise_density = 0.15
tasks.span_corruption.source = @corpora.text_files()
# Parameters for inputs/corpora.text_files:
corpora.text_files.files = %TEXT_FILES
# Parameters for network.T5Config:
network.T5Config.activation = %ACTIVATION
network.T5Config.dropout_rate = %DROPOUT_RATE
network.T5Config.gated = %GATED
network.T5Config.mlp_dim = @mlp.width()
network.T5Config.num_heads = 4
network.T5Config.vocab_size = %VOCAB_SIZE
# Parameters for network.Transformer:
network.Transformer.config = @network.T5Config()
"""


def changed(old, new):
  assert CONFIG.count(old) == 1, old
  return CONFIG.replace(old, new)


def operative(text):
  """As our own trainer writes it: what a macro refers to is in its scope."""
  text = text.replace('\nnetwork.', '\nMODEL/network.')
  return text.replace('\nrational.', '\nACTIVATION/rational.')


@pytest.mark.parametrize('form', [str, operative])
@pytest.mark.parametrize(
  'old, new, named',
  [
    ('GATED = True', 'GATED = False', 'GATED was True and is now False'),
    ('@rational.rational()', "'gelu'", 'ACTIVATION was @rational() and is now'),
    ("version = 'A'", "version = 'B'", "rational.version was 'A'"),
    ('(5, 4)', '(7, 6)', 'rational.degrees was (5, 4) and is now (7, 6)'),
    ('MLP_DIM = 384', 'MLP_DIM = 768', 'MLP_DIM was 384'),
    ('num_heads = 4', 'num_heads = 8', 'T5Config.num_heads was 4'),
    ('VOCAB_SIZE = 384', 'VOCAB_SIZE = 512', 'VOCAB_SIZE was 384'),
    ('= 0.15', '= 0.3', 'span_corruption.noise_density was 0.15'),
    ("'/data/*.txt'", "'/other/*.txt'", "TEXT_FILES was '/data/*.txt'"),
    ('@tasks.span_corruption()', "'mine'", 'MIXTURE_OR_TASK_NAME was @span'),
  ],
)
def test_a_run_directory_stays_of_one_run(form, old, new, named, tmp_path):
  (tmp_path / 'config.gin').write_text(form(CONFIG))
  with pytest.raises(errors.UserError) as caught:
    for_t5x.check_same_run(str(tmp_path), changed(old, new))
  assert named in str(caught.value), caught.value
  assert str(tmp_path) in str(caught.value)
  assert (tmp_path / 'config.gin').read_text() == form(CONFIG)


@pytest.mark.parametrize('form', [str, operative])
@pytest.mark.parametrize(
  'old, new',
  [
    ('BATCH_SIZE = 16', 'BATCH_SIZE = 32'),
    ('DROPOUT_RATE = 0.0', 'DROPOUT_RATE = 0.1'),
    # A number where ours is computed, as in T5's public files.
    ('= @mlp.width()', '= 256'),
    ('= %VOCAB_SIZE', '= 384'),
    # The same function, imported otherwise.
    ('= @rational.rational()', '= @activations.rational.rational()'),
  ],
)
def test_a_run_directory_allows_other_settings(form, old, new, tmp_path):
  (tmp_path / 'config.gin').write_text(form(CONFIG))
  for_t5x.check_same_run(str(tmp_path), changed(old, new))
  for_t5x.check_same_run(str(tmp_path / 'new'), changed(old, new))


@pytest.mark.filterwarnings('ignore')
def test_a_checkpoint_of_another_model(tmp_path, t5x_module, monkeypatch):
  """Another task may be evaluated; another function may not go unseen."""
  t5x_module('t5x.gin_utils')
  step = f'{tmp_path}/checkpoint_20'
  (tmp_path / 'config.gin').write_text(CONFIG)
  gin.parse_config(
    """
    from __gin__ import dynamic_registration
    from t5x_variants.model import mlp
    from t5x_variants.model import network
    MIXTURE_OR_TASK_NAME = 'other'
    ACTIVATION = 'gelu'
    network.Transformer.config = @network.T5Config()
    network.T5Config.feed_forward = @mlp.FeedForwardConfig()
    mlp.FeedForwardConfig.activation = %ACTIVATION
    """
  )
  with pytest.raises(errors.UserError, match='ACTIVATION was @rational') as e:
    for_t5x.checkpoint(step)
  assert 'MIXTURE' not in str(e.value)
  assert for_t5x.checkpoint(step, partial=True) == step
  assert for_t5x.checkpoint(f'{tmp_path}/public/checkpoint_1') is not None
  assert for_t5x.checkpoint([]) == []
  # Neither t5x nor Orbax takes a path that is relative to the current folder.
  monkeypatch.chdir(tmp_path)
  assert (
    for_t5x.checkpoint('run/checkpoint_1') == f'{tmp_path}/run/checkpoint_1'
  )
  assert for_t5x.checkpoint('checkpoint_20', partial=True) == step
  assert for_t5x.checkpoint('gs://bucket/1', partial=True) == 'gs://bucket/1'
  assert for_t5x.model_dir('new/run') == f'{tmp_path}/new/run'


@pytest.mark.filterwarnings('ignore')
def test_an_earlier_config_is_kept(tmp_path, t5x_module):
  t5x_module('t5x.gin_utils')
  config = tmp_path / 'config.gin'

  def start(value, step):
    gin.clear_config()
    gin.parse_config(f'SIZE = {value}')
    for_t5x.summarize_config(str(tmp_path), None, step, total_steps=40)
    return config.read_text()

  assert 'SIZE = 1' in (first := start(1, 0))
  assert start(1, 20) == first and not (tmp_path / 'config-20.gin').exists()
  assert 'SIZE = 2' in (second := start(2, 20))
  assert (tmp_path / 'config-20.gin').read_text() == first
  # No step is taken.
  assert start(3, 40) == second and not (tmp_path / 'config-40.gin').exists()
