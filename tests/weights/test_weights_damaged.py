"""Weights that are damaged, harmful or of another kind: one sentence."""

import contextlib
import functools
import os
import shutil
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest
from damage_cases import CASES
from flax import traverse_util
from weights_cases import random_values, write_t5x

from t5x_variants import errors
from t5x_variants.cli import importing
from t5x_variants.model import network, parameters
from t5x_variants.weights import hugging_face, saved, source, t5x

MODEL = network.Transformer(
  network.T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=12,
  )
)
OPEN = {
  'hf': hugging_face.open_folder,
  't5x': lambda path, config, names: t5x.open_checkpoint(path),
}
OPEN['orbax'] = OPEN['t5x']


@functools.cache
def shapes_and_axes(model):
  return parameters.shapes_and_axes(model)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Weights as each program writes them, and those of another model."""
  folder = tmp_path_factory.mktemp('weights')
  for seed, name in enumerate(('given', 'other')):
    values = random_values(shapes_and_axes(MODEL)[0], seed)
    params = traverse_util.unflatten_dict(values, sep='/')
    (folder / name / 'hf').mkdir(parents=True)
    hugging_face.write(
      folder / name / 'hf', MODEL.config, source.unrolled(values)
    )
    write_t5x(folder / name / 't5x', values)
    with ocp.PyTreeCheckpointer() as writer:
      writer.save(
        folder / name / 'orbax/checkpoint_30/state', {'target': params}
      )
  config = "ACTIVATION = 'gelu'\nGATED = True\n"
  saved.write(folder / 'given/run', 5, params, config)
  return folder


STEPS = {
  'hf': 'hf',
  't5x': 't5x/checkpoint_7',
  'orbax': 'orbax/checkpoint_30',
}


def content_of(folder):
  """Every path below a folder, with what a file holds or a link leads to."""
  return {
    path: (
      os.readlink(path)
      if path.is_symlink()
      else path.read_bytes()
      if path.is_file()
      else None
    )
    for path in folder.rglob('*')
  }


def sentence_of(function, *arguments):
  with pytest.raises(errors.UserError) as error:
    function(*arguments)
  sentence = str(error.value)
  assert sentence[0].isupper() and sentence[-1] == '.'
  assert '\n' not in sentence and len(sentence) < 900
  return sentence


@pytest.fixture
def import_(monkeypatch):
  """What import_hf and import_t5x do, with a model that needs no gin file."""

  def import_(kind, folder, output):
    flags = types.SimpleNamespace(
      checkpoint=str(folder),
      output=str(output),
      dry_run=False,
      gin_file=[],
      gin_bindings=[],
      gin_search_paths=[],
    )
    monkeypatch.setattr(importing, 'FLAGS', flags)
    monkeypatch.setattr(
      importing.gin_utils, 'read_model', lambda *_: (MODEL, '')
    )
    monkeypatch.setattr(parameters, 'shapes_and_axes', shapes_and_axes)
    importing.run(OPEN[kind])

  return import_


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind, damage, said', CASES)
def test_what_is_damaged_is_refused(
  folder, tmp_path, import_, kind, damage, said
):
  given = folder / 'given' / STEPS[kind]
  given = shutil.copytree(given, tmp_path / given.name, symlinks=True)
  other = tmp_path / 'other'
  other.symlink_to(folder / 'other' / STEPS[kind])
  damage(given, other)
  before = content_of(tmp_path)
  with pytest.raises(errors.UserError, match=said) as error:
    import_(kind, given, tmp_path / 'imported')
  sentence = str(error.value)
  assert sentence[0].isupper() and sentence[-1] == '.' and len(sentence) < 900
  # One line, or the differences on lines of their own.
  assert all(x.startswith('  ') for x in sentence.splitlines()[1:-1])
  assert content_of(tmp_path) == before


@pytest.mark.parametrize('kind', OPEN)
def test_what_is_whole_is_imported(folder, tmp_path, import_, kind):
  import_(kind, folder / 'given' / STEPS[kind], tmp_path / 'imported')
  want = random_values(shapes_and_axes(MODEL)[0])
  found = saved.open_checkpoint(tmp_path / 'imported')
  assert found.step == {'hf': 0, 't5x': 7, 'orbax': 30}[kind]
  values = found.read()
  assert values.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(values[name], value, name)


def test_the_hubs_cache_may_be_given(folder, tmp_path, import_):
  """Its files are links to blobs beside the snapshots, and to nowhere else."""
  snapshot = tmp_path / 'models--x/snapshots/1'
  shutil.copytree(folder / 'given/hf', snapshot)
  blobs = tmp_path / 'models--x/blobs'
  blobs.mkdir()
  for number, file in enumerate(sorted(snapshot.iterdir())):
    os.rename(file, blobs / str(number))
    file.symlink_to(f'../../blobs/{number}')
  import_('hf', snapshot, tmp_path / 'imported')
  os.rename(blobs, tmp_path / 'elsewhere')
  blobs.symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match='leads out of the folder'):
    import_('hf', snapshot, tmp_path / 'again')


# A path of the wrong kind, or that cannot be read: the cure is named.


def open_hf(path):
  return hugging_face.open_folder(str(path), MODEL.config, ())


def open_t5x(path):
  return t5x.open_checkpoint(str(path))


@pytest.mark.parametrize(
  'path, command',
  [
    ('hf', 'import_hf'),
    ('hf/model.safetensors', 'import_hf'),
    ('hf/config.json', 'import_hf'),
    ('t5x', 'import_t5x'),
    ('t5x/checkpoint_7', 'import_t5x'),
    ('t5x/checkpoint_7/checkpoint', 'import_t5x'),
    ('orbax', 'import_t5x'),
    ('orbax/checkpoint_30', 'import_t5x'),
  ],
)
def test_weights_that_need_an_import(folder, path, command):
  """INITIAL_CHECKPOINT_PATH, CHECKPOINT_PATH and --run all end here."""
  given = folder / 'given' / path
  sentence = sentence_of(saved.open_checkpoint, given)
  given = given.parent if given.is_file() else given
  assert f'python -m t5x_variants.{command} --gin_file=' in sentence
  assert f'--checkpoint={given} --output=DIR, and give DIR here' in sentence
  # The command's own reader takes the path that is named.
  assert (open_t5x if command == 'import_t5x' else open_hf)(given).shapes


@pytest.mark.parametrize(
  'read, path, words',
  [
    (open_hf, 't5x', 'weights of t5x, not of Hugging Face transformers: '),
    (open_hf, 'orbax/checkpoint_30', 'python -m t5x_variants.import_t5x '),
    (open_t5x, 'hf', 'python -m t5x_variants.import_hf '),
    (open_t5x, 'run', 'need no import: give them to a run by --gin.INITIAL_'),
    (open_hf, 'run/checkpoints/5', 'need no import'),
    (open_hf, '', 'no checkpoint of Hugging Face transformers: give a local'),
    (open_t5x, 'none', 'no checkpoint of t5x because it does not exist'),
    (saved.open_checkpoint, 'x' * 300, 'cannot be read: File name too long'),
    (open_t5x, 'x' * 300, 'cannot be read: File name too long'),
    (open_hf, 'x' * 300, 'cannot be read: File name too long'),
  ],
)
def test_the_wrong_command(folder, read, path, words):
  assert words in sentence_of(read, folder / 'given' / path)


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
  [(saved.open_checkpoint, 'run'), (open_t5x, 't5x'), (open_hf, 'hf')],
)
def test_a_folder_that_may_not_be_read(folder, read, path):
  with no_rights(folder / 'given' / path):
    sentence = sentence_of(read, folder / 'given' / path)
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
