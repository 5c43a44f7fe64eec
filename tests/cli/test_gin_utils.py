"""The command line in process: what is missing, what wins, --dry_run.

Slips on the command line are rows of tests/support/slips.py.
"""

import errno

import gin
import pytest
from absl import flags
from absl.testing import flagsaver

from t5x_variants import errors, logs, train
from t5x_variants.cli import command_line, gin_utils, gin_values
from t5x_variants.data import config as data_config
from t5x_variants.training import trainer

FILES = {
  'models': 'gin/models/tiny.gin',
  'variants': 'gin/variants/swiglu.gin',
  'data': 'gin/data/embedded.gin',
  'runs': 'gin/runs/pretrain.gin',
}
VALUES = ("--gin.MODEL_DIR='/nowhere'", '--gin.TRAIN_STEPS=5')


def command(*extra, without=(), values=VALUES):
  """Arguments of a whole run, less some kinds of files, plus some."""
  files = [f for kind, f in FILES.items() if kind not in without]
  return [*(f'--gin_file={f}' for f in files), *values, *extra]


def main(*arguments):
  """What `python -m t5x_variants.train` does with arguments."""
  with flagsaver.flagsaver():
    for name in ('gin_file', 'gin_bindings', 'gin_search_paths'):
      flags.FLAGS[name].unparse()
    command_line.read_flags(['train', *arguments])
    train.main()


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
  """Nothing here may get as far as data, a run directory or the log."""

  def fail(*unused_args, **unused_options):
    raise AssertionError('data was opened')

  monkeypatch.setattr(data_config.DatasetConfig, 'open', fail)
  monkeypatch.setattr(logs, 'quiet', lambda: None)
  monkeypatch.chdir(tmp_path)  # The shipped files are found from anywhere.


def test_all_that_is_missing_is_listed_at_once():
  with pytest.raises(errors.UserError) as error:
    main(*command(without=['models', 'variants', 'data'], values=()))
  suggestions = {
    name: suggestion
    for line in str(error.value).splitlines()[1:]
    for names, _, suggestion in [line.partition(': ')]
    for name in names.strip().split(', ')
  }
  assert {'MODEL_DIR', 'TASK_FEATURE_LENGTHS', 'WARMUP_STEPS'} <= set(
    suggestions
  )
  assert (
    '--gin_file=gin/models/X.gin with X one of byt5_small'
    in (suggestions['MODEL'])
  )
  assert suggestions['BATCH_SIZE'] == suggestions['MODEL']
  assert 'embedded' in suggestions['MIXTURE_OR_TASK_NAME']
  assert suggestions['TRAIN_STEPS'].startswith('--gin.TRAIN_STEPS=VALUE')


def test_a_required_macro_is_cured_by_a_flag_not_by_its_own_file():
  arguments = command('--gin_file=gin/data/c4.gin', without=['data'])
  with pytest.raises(errors.UserError, match=r'--gin.TFDS_DATA_DIR='):
    main(*arguments)


def test_later_files_and_flags_win(tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'late.gin').write_text('BATCH_SIZE = 4\nZ_LOSS = 0.5\n')
  gin_utils.parse(
    [*FILES.values(), 'late.gin'], ['Z_LOSS=0.25'], [str(tmp_path / 'mine')]
  )
  assert gin_utils.macro('BATCH_SIZE') == 4
  assert gin_utils.macro('Z_LOSS') == 0.25


def test_arguments_are_rewritten_and_no_others():
  assert command_line.rewrite_arguments(
    ['x', '--gin.A=1', '--gin_file=f', "--gin.b.c='d=e'"]
  ) == ['x', '--gin_bindings=A=1', '--gin_file=f', "--gin_bindings=b.c='d=e'"]


def test_a_whole_configuration_reaches_the_trainer():
  values = [value.removeprefix('--gin.') for value in VALUES]
  gin_utils.parse(list(FILES.values()), values)
  assert gin_values.missing() == []
  assert callable(gin_utils.configured(trainer.train))
  config = gin_utils.macro('MODEL').config
  assert (config.feed_forward.gated, config.mlp_dim) == (True, 256)
  assert config.feed_forward.activation.name == 'swish'


def test_dry_run_prints_all_and_touches_no_data(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  from t5x_variants.data.base._tensorflow import seqio, tf

  def fail(*unused_args, **unused_options):
    raise AssertionError('a dataset was opened')

  monkeypatch.setattr(seqio, 'get_dataset', fail)
  monkeypatch.setattr(tf.data.Dataset, 'from_generator', fail)
  main(*command('--dry_run'))
  text = capsys.readouterr().out
  assert 'BATCH_SIZE = 16' in text and "MODEL_DIR = '/nowhere'" in text
  assert '# 886,528 parameters' in text
  assert '# every macro has a value' in text
  assert not list(tmp_path.iterdir())
  # What is printed is a configuration again.
  gin.clear_config()
  gin.parse_config(text)
  assert gin.config_str() in text


def test_dry_run_counts_although_macros_are_missing(capsys):
  with pytest.raises(errors.UserError) as error:
    main(*command('--dry_run', values=()))
  assert 'MODEL_DIR: ' in str(error.value)
  assert 'TRAIN_STEPS: ' in str(error.value)
  assert '# 886,528 parameters' in capsys.readouterr().out


def test_dry_run_without_a_variant_prints_what_there_is(capsys):
  with pytest.raises(errors.UserError, match=r'gin/variants/X.gin'):
    main(*command('--dry_run', without=['variants']))
  assert 'parameters' not in capsys.readouterr().out


def test_a_full_disk_is_a_sentence_although_gin_raises_another_error(capsys):
  """Gin's own exception has the number in its text alone."""

  def full():
    raise OSError(errno.ENOSPC, 'No space left on device', 'runs/a/x')

  def other():
    raise PermissionError(errno.EACCES, 'Permission denied', 'x')

  for function in (full, gin.external_configurable(full, module='tests')):
    assert errors.exit_status(function) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: There is no room') and 'intact' in said
  with pytest.raises(PermissionError):
    errors.exit_status(other)
