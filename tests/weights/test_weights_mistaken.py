"""A path of the wrong kind, or that cannot be read: one sentence."""

import contextlib
import os
import shutil

import orbax.checkpoint as ocp
import pytest
from configs import t5_config
from flax import traverse_util
from weights_cases import random_values, write_t5x

from t5x_variants import errors
from t5x_variants.model import network, parameters
from t5x_variants.weights import foreign, hugging_face, saved, source

CONFIG = t5_config(
  vocab_size=40,
  emb_dim=8,
  num_heads=2,
  head_dim=3,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_dim=12,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The same weights as each program writes them."""
  folder = tmp_path_factory.mktemp('weights')
  shapes, _ = parameters.shapes_and_axes(network.Transformer(CONFIG))
  values = random_values(shapes)
  params = traverse_util.unflatten_dict(values, sep='/')
  (folder / 'hf').mkdir()
  hugging_face.write(folder / 'hf', CONFIG, source.unrolled(values))
  write_t5x(folder / 't5x', values)
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder / 'orbax/checkpoint_3/state', {'target': params})
  saved.write(folder / 'run', 5, params, "ACTIVATION = 'gelu'\nGATED = True\n")
  return folder


def open_foreign(path):
  shapes, _ = parameters.shapes_and_axes(network.Transformer(CONFIG))
  return foreign.open_checkpoint(str(path), CONFIG, shapes)


def sentence_of(function, path):
  with pytest.raises(errors.UserError) as error:
    function(path)
  sentence = str(error.value)
  assert sentence[0].isupper() and sentence[-1] == '.'
  assert '\n' not in sentence
  return sentence


@pytest.mark.parametrize(
  'path',
  [
    'hf',
    'hf/model.safetensors',
    'hf/config.json',
    't5x',
    't5x/checkpoint_7',
    't5x/checkpoint_7/checkpoint',
    'orbax',
    'orbax/checkpoint_3',
  ],
)
def test_weights_that_need_an_import(folder, path):
  """INITIAL_CHECKPOINT_PATH, CHECKPOINT_PATH and --run all end here."""
  sentence = sentence_of(saved.open_checkpoint, folder / path)
  given = folder / path
  parent = given.parent if given.is_file() else given
  assert 'python -m t5x_variants.import_weights --gin_file=' in sentence
  assert f'--checkpoint={parent} --output=DIR, and give DIR here' in sentence
  # The command's reader takes what was given, and what the sentence names.
  shapes = open_foreign(given).shapes
  assert shapes and open_foreign(parent).shapes == shapes


@pytest.mark.parametrize(
  'read, path, words',
  [
    (
      open_foreign,
      'run',
      'need no import: give them to a run by --gin.INITIAL_',
    ),
    (open_foreign, 'run/checkpoints/5', 'need no import'),
    (
      open_foreign,
      '',
      'no checkpoint of t5x or Hugging Face transformers: give',
    ),
    (open_foreign, 'none', 'transformers because it does not exist: give a'),
    (saved.open_checkpoint, 'x' * 300, 'cannot be read: File name too long'),
    (open_foreign, 'x' * 300, 'cannot be read: File name too long'),
  ],
)
def test_a_path_without_such_weights(folder, read, path, words):
  assert words in sentence_of(read, folder / path)


def test_a_folder_of_checkpoints_beside_the_weights_changes_nothing(
  folder, tmp_path
):
  """As a trainer of transformers leaves them there."""
  copy = shutil.copytree(folder / 'hf', tmp_path / 'hf')
  (copy / 'checkpoints').mkdir()
  (copy / 'checkpoint_5').mkdir()
  assert open_foreign(copy).shapes == open_foreign(folder / 'hf').shapes


@contextlib.contextmanager
def no_rights(folder):
  """Nobody may read a folder, and root, whom that does not stop, is nobody."""
  root = os.geteuid() == 0
  folder.chmod(0)
  if root:
    os.seteuid(65534)
  try:
    yield
  finally:
    if root:
      os.seteuid(0)
    folder.chmod(0o700)


@pytest.mark.parametrize(
  'read, path',
  [
    (saved.open_checkpoint, 'run'),
    (open_foreign, 't5x'),
    (open_foreign, 'hf'),
  ],
)
def test_a_folder_that_may_not_be_read(folder, read, path):
  with no_rights(folder / path):
    sentence = sentence_of(read, folder / path)
  assert 'cannot be read: Permission denied' in sentence


@pytest.mark.parametrize(
  'damage, words',
  [
    (lambda file: file.write_bytes(b'\xff = 1\n'), "can't decode byte 0xff"),
    (lambda file: file.mkdir(), 'Is a directory'),
  ],
)
def test_a_run_whose_config_cannot_be_read(tmp_path, damage, words):
  """It says which variant the weights are of: none is not any."""
  saved.write(tmp_path / 'run', 1, {'a': {'b': 1.0}}, '')
  (tmp_path / 'run/config.gin').unlink()
  damage(tmp_path / 'run/config.gin')
  sentence = sentence_of(saved.open_checkpoint, tmp_path / 'run')
  assert 'run/config.gin' in sentence and words in sentence
