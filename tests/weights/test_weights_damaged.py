"""Weights that are damaged or harmful: one sentence, and nothing written."""

import functools
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from configs import t5_config
from damage_cases import CASES
from flax import traverse_util
from weights_cases import random_values, write_t5x

from t5x_variants import errors
from t5x_variants.model import network, parameters
from t5x_variants.weights import foreign, hugging_face, matching, saved, source

MODEL = network.Transformer(
  t5_config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=12,
  )
)
KINDS = ('hf', 't5x', 'orbax')


@functools.cache
def shapes_and_axes(model):
  return parameters.shapes_and_axes(model)


def write_hf(folder, values):
  folder.mkdir()
  hugging_face.write(folder, MODEL.config, source.unrolled(values))
  return folder


def write_orbax(folder, values):
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(
      folder / 'checkpoint_30/state',
      {'target': traverse_util.unflatten_dict(values, sep='/')},
    )
  return folder / 'checkpoint_30'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder of each kind, and beside it the weights of another model."""
  folder = tmp_path_factory.mktemp('whole')
  folders = {}
  for seed, name in enumerate(('given', 'other')):
    values = random_values(shapes_and_axes(MODEL)[0], seed)
    folders[name] = {
      'hf': write_hf(folder / f'{name}_hf', values),
      't5x': write_t5x(folder / f'{name}_t5x', values),
      'orbax': write_orbax(folder / f'{name}_orbax', values),
    }
  return folders


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


def import_(folder, output):
  """What import_weights does, with a model that needs no gin file."""
  shapes, _ = shapes_and_axes(MODEL)
  found = foreign.open_checkpoint(str(folder), MODEL.config, shapes)
  saved.write(output, found.step, matching.exact(found, shapes, 'Do this.'), '')


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind, damage, said', CASES)
def test_what_is_damaged_is_refused(whole, tmp_path, kind, damage, said):
  given = whole['given'][kind]
  folder = shutil.copytree(given, tmp_path / given.name, symlinks=True)
  other = tmp_path / 'other'
  other.symlink_to(whole['other'][kind])
  damage(folder, other)
  before = content_of(tmp_path)
  with pytest.raises(errors.UserError, match=said) as error:
    import_(folder, tmp_path / 'imported')
  sentence = str(error.value)
  assert sentence[0].isupper() and sentence[-1] == '.' and len(sentence) < 900
  # One line, or the differences on lines of their own.
  assert all(x.startswith('  ') for x in sentence.splitlines()[1:-1])
  assert content_of(tmp_path) == before


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_whole_is_imported(whole, tmp_path, kind):
  import_(whole['given'][kind], tmp_path / 'imported')
  want = random_values(shapes_and_axes(MODEL)[0])
  values = saved.open_checkpoint(tmp_path / 'imported').read()
  assert values.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(values[name], value, name)


def test_the_hubs_cache_may_be_given(whole, tmp_path):
  """Its files are links to blobs beside the snapshots, and to nowhere else."""
  snapshot = tmp_path / 'models--x/snapshots/1'
  shutil.copytree(whole['given']['hf'], snapshot)
  blobs = tmp_path / 'models--x/blobs'
  blobs.mkdir()
  for number, file in enumerate(sorted(snapshot.iterdir())):
    os.rename(file, blobs / str(number))
    file.symlink_to(f'../../blobs/{number}')
  import_(snapshot, tmp_path / 'imported')
  os.rename(blobs, tmp_path / 'elsewhere')
  blobs.symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match='leads out of the folder'):
    import_(snapshot, tmp_path / 'again')
