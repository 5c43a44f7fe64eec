"""Every slip on the command line ends in one sentence that helps.

In process where it can be: `train.main` without absl's wrapper. Two
subprocesses show that the wrapper adds the status and no traceback.
"""

import errno
import os
import pathlib
import subprocess
import sys

import gin
import pytest
from absl import flags
from absl.testing import flagsaver

from t5x_variants import errors, logs, train
from t5x_variants.cli import command_line, gin_utils, gin_values
from t5x_variants.data import config as data_config
from t5x_variants.training import trainer

ROOT = pathlib.Path(__file__).parents[2]
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


SLIPS = {
  'unknown model file': (
    command('--gin_file=gin/models/tinny.gin'),
    [
      "'gin/models/tinny.gin'",
      'Did you mean gin/models/tiny.gin?',
      'gin/models/t5_1_1_base.gin',
    ],
  ),
  'unknown file, no folder': (
    command('--gin_file=nope.gin'),
    ["'nope.gin'", 'gin/models/tiny.gin', 'gin/runs/pretrain.gin'],
  ),
  'unknown file, absolute': (
    command('--gin_file=/nope.gin'),
    ["'/nope.gin'", 'gin/models/tiny.gin'],
  ),
  'a folder for a file': (
    command('--gin_file=gin/variants'),
    ["'gin/variants'", 'gin/variants/swiglu.gin'],
  ),
  "a file of the other launcher's": (
    command('--gin_file=gin/t5x/pretrain.gin'),
    ['gin/t5x/pretrain.gin', 'python -m t5x.train', 'file of gin/runs'],
  ),
  'unknown macro': (
    command('--gin.TRIAN_STEPS=7'),
    ['--gin.TRIAN_STEPS', 'Did you mean TRAIN_STEPS?', 'BATCH_SIZE, '],
  ),
  'unquoted string': (
    command('--gin.MODEL_DIR=runs/mine'),
    [
      "'runs/mine' is not a gin value",
      '--gin.MODEL_DIR="\'runs/mine\'"',
      'numbers, True',
    ],
  ),
  'unquoted word': (
    command('--gin.ACTIVATION=swish'),
    ['--gin.ACTIVATION="\'swish\'"'],
  ),
  'no value': (
    command('--gin.TRAIN_STEPS', '5'),
    ['--gin.TRAIN_STEPS has no value', '--gin.TRAIN_STEPS=VALUE'],
  ),
  'no name': (command('--gin.=5'), ["'' is not a name", '--gin.MACRO=VALUE']),
  'unknown activation': (
    command("--gin.ACTIVATION='swigloo'"),
    ["'swigloo'", 'swish', 'polynorm'],
  ),
  'unknown parameter': (
    command('--gin.trainer.train.foo=1'),
    ['--gin.trainer.train.foo=1', "no parameter 'foo'", 'log_period'],
  ),
  'misspelt parameter': (
    command('--gin.network.T5Config.vocab_siez=1'),
    ["no parameter 'vocab_siez'", "Did you mean 'vocab_size'?", 'emb_dim'],
  ),
  'unknown function': (
    command('--gin.trainer.trian.z_loss=1'),
    ["no function 'trainer.trian'", "Did you mean 'trainer.train'?"],
  ),
  'unknown reference': (
    command('--gin.ACTIVATION=@foo()'),
    ["no function 'foo'"],
  ),
  'flag without gin.': (
    command('--TRAIN_STEPS=5'),
    ['--TRAIN_STEPS is not a flag', '--gin.TRAIN_STEPS=5'],
  ),
  'flag without value': (['--gin_file'], ['--gin_file']),
  'missing run file': (
    command(without=['runs'], values=()),
    ['X one of finetune, glu_finetune, low_data, pretrain', 'DROPOUT_RATE'],
  ),
  'missing run file, its macros set': (
    command(without=['runs']),
    ['MODEL_DIR', 'where it belongs', 'precompile, pretrain'],
  ),
  'no file at all': ([], ['a run file: --gin_file=gin/runs/X.gin with X one']),
  'no file at all, dry': (['--dry_run'], ['a run file: ']),
  'a width that no gate fits': (
    command('--gin.MLP_DIM=100'),
    ['mlp_dim=100, which is not divisible by 3', '99 or 102'],
  ),
}


@pytest.mark.parametrize('slip', SLIPS)
def test_a_slip_is_named_with_its_cure(slip):
  arguments, words = SLIPS[slip]
  with pytest.raises(errors.UserError) as error:
    main(*arguments)
  message = str(error.value)
  for word in words:
    assert word in message, message
  assert '0x' not in message.split('In call to')[0]


def test_all_that_is_missing_is_listed_at_once():
  with pytest.raises(errors.UserError) as error:
    main(*command(without=['models', 'variants', 'data'], values=()))
  cures = {
    name: cure
    for line in str(error.value).splitlines()[1:]
    for names, _, cure in [line.partition(': ')]
    for name in names.strip().split(', ')
  }
  assert set(cures) >= {
    'BATCH_SIZE',
    'MIXTURE_OR_TASK_NAME',
    'MODEL',
    'MODEL_DIR',
    'TASK_FEATURE_LENGTHS',
    'TRAIN_STEPS',
    'WARMUP_STEPS',
  }
  assert (
    '--gin_file=gin/models/X.gin with X one of byt5_small' in (cures['MODEL'])
  )
  assert cures['BATCH_SIZE'] == cures['MODEL']
  assert 'embedded' in cures['MIXTURE_OR_TASK_NAME']
  assert cures['TRAIN_STEPS'].startswith('--gin.TRAIN_STEPS=VALUE')


def test_a_required_macro_is_cured_by_a_flag_not_by_its_own_file():
  arguments = command('--gin_file=gin/data/c4.gin', without=['data'])
  with pytest.raises(errors.UserError, match=r'--gin.TFDS_DATA_DIR='):
    main(*arguments)


@pytest.mark.parametrize(
  'text, words',
  [
    ('A = 1\nACTIVATION = relu\n', ['line 2', 'ACTIVATION = relu', 'quotes']),
    ('B == 3\n', ['line 1', 'B == 3', 'NAME = VALUE']),
    ("include 'gone.gin'\n", ["'gone.gin'", 'mine.gin includes']),
    ('import nope\n', ['line 1', "No module named 'nope'"]),
    (
      'from __gin__ import dynamic_registration\n'
      'from t5x_variants.training import programs\n'
      'programs.OptimizationConfig.z_los = 0.1\n',
      ['line 3', "no parameter 'z_los'", "Did you mean 'z_loss'?"],
    ),
  ],
)
def test_a_slip_in_a_file_is_named_with_its_line(tmp_path, text, words):
  file = tmp_path / 'mine.gin'
  file.write_text(text)
  with pytest.raises(errors.UserError) as error:
    main(*command(f'--gin_file={file}'))
  for word in [*words, 'mine.gin']:
    assert word in str(error.value), str(error.value)


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


def test_a_run_file_with_too_little_is_no_run_file(tmp_path):
  (tmp_path / 'mine.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from t5x_variants.training import programs\n'
    'programs.OptimizationConfig.z_loss = 0.1\n'
  )
  with pytest.raises(errors.UserError, match='a run file'):
    main(*command('--gin_file=mine.gin', without=['runs'], values=()))


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


def launch(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 't5x_variants.train', *arguments],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
    timeout=200,
  )


@pytest.mark.parametrize(
  'arguments, sentence',
  [
    (['gin/models/tiny.gin'], 'Write --gin_file=gin/models/tiny.gin'),
    (
      command("--gin.ACTIVATION='swigloo'", '--dry_run'),
      "error: There is no activation 'swigloo'",
    ),
  ],
)
def test_the_command_ends_with_status_2_and_no_traceback(arguments, sentence):
  result = launch(*arguments)
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  last = result.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and sentence in last
  assert 'Path not found' not in result.stderr


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
