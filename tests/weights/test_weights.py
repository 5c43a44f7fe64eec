"""Weights from t5x's format and from our own: exact, or what fits."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import quick_jit
from configs import t5_config
from flax import traverse_util
from small_run import VOCAB, Numbered, losses, mesh_of, run
from weights_cases import random_values, write_t5x

from t5x_variants import activations, errors
from t5x_variants.model import network, parameters
from t5x_variants.run_dir import records
from t5x_variants.training import train_state, train_step
from t5x_variants.weights import matching, saved, source, t5x

quick = quick_jit.quick
ROOT = pathlib.Path(__file__).parents[2]
# small_run's model, but for two layers in place of SMALL's.
SIZES = {
  'vocab_size': VOCAB,
  'emb_dim': 8,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'head_dim': 4,
  'mlp_dim': 12,
}


SMALL = {'num_encoder_layers': 1, 'num_decoder_layers': 1}


@functools.cache
def shapes_of(**options):
  model = network.Transformer(t5_config(**SIZES | options))
  return parameters.shapes_and_axes(model)[0]


@pytest.mark.parametrize('scan, remote', [(False, True), (True, False)])
@pytest.mark.parametrize('scan_source', [False, True])
def test_a_t5x_checkpoint_in_any_form(scan, scan_source, remote, tmp_path):
  """Unrolled or scanned on either side, and as a bucket would hold it."""
  values = random_values(shapes_of(scan_layers=scan_source))
  inside = {'encoder/encoder_norm/scale', 'decoder/decoder_norm/scale'}
  write_t5x(tmp_path, values, remote=remote, inside=inside if remote else ())
  found = t5x.open_checkpoint(str(tmp_path))
  assert found.step == 7
  params = matching.exact(found, shapes_of(scan_layers=scan), '')
  same = traverse_util.unflatten_dict(values, sep='/')
  if scan_source and not scan:
    same = network.unstack_layers(same)
  elif scan and not scan_source:
    same = network.stack_layers(same)
  jax.tree.map(np.testing.assert_array_equal, params, same)


def test_a_t5x_checkpoint_in_bfloat16(tmp_path):
  values = random_values(shapes_of())
  write_t5x(tmp_path, values, dtype='bfloat16')
  params = matching.exact(t5x.open_checkpoint(str(tmp_path)), shapes_of(), '')
  for name, value in traverse_util.flatten_dict(params, sep='/').items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, values[name].astype('bfloat16'))


def test_t5x_through_orbax(tmp_path):
  values = random_values(shapes_of())
  target = traverse_util.unflatten_dict(values, sep='/')
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(
      tmp_path / 'checkpoint_30/state',
      {'target': target, 'state': {'step': np.int32(30)}},
    )
  write_t5x(tmp_path, random_values(shapes_of(), seed=1), step=4)
  found = t5x.open_checkpoint(str(tmp_path))  # The newest.
  assert found.step == 30
  params = matching.exact(found, shapes_of(), '')
  jax.tree.map(np.testing.assert_array_equal, params, target)


@pytest.mark.parametrize(
  'left_out, more, options, said',
  [
    (
      ['encoder/layers_1/mlp/wi_1/kernel'],
      {},
      {},
      ['encoder/layers_1/mlp/wi_1/kernel: absent', '[8, 12] in this model'],
    ),
    (
      [],
      {'decoder/extra/bias': np.zeros(3, np.float32)},
      {},
      ['decoder/extra/bias: [3] in the checkpoint, absent in this model'],
    ),
    (
      [],
      {},
      {'mlp_dim': 24},
      ['12 array(s)', 'wi_0/kernel: [8, 12] in the checkpoint, [8, 24]'],
    ),
    (
      [],
      {},
      {'num_encoder_layers': 3},
      ['encoder/layers_2/', 'absent in the checkpoint'],
    ),
    (
      [],
      {},
      {'activation': 'polynorm'},
      ['activation/weight: absent in the checkpoint, [3] in this model'],
    ),
  ],
)
def test_a_difference_is_named(left_out, more, options, said):
  values, _ = found_of(None)
  values = {k: v for k, v in values.items() if k not in left_out} | more
  shapes = {name: value.shape for name, value in values.items()}
  found = source.Source('old', 5, shapes, lambda: values, None)
  with pytest.raises(errors.UserError) as error:
    matching.exact(found, shapes_of(**options), 'Do this.')
  text = str(error.value)
  assert not [words for words in said if words not in text], text
  assert text.endswith('Do this.')


def test_where_t5x_checkpoints_are_read_from():
  assert t5x._store('gs://bucket/a/checkpoint_5') == {
    'driver': 'gcs',
    'bucket': 'bucket',
    'path': 'a/checkpoint_5/',
  }
  with pytest.raises(errors.UserError, match='from local folders and from gs'):
    t5x.open_checkpoint('s3://bucket/checkpoint_5')
  with pytest.raises(errors.UserError, match='because it does not exist'):
    t5x.open_checkpoint('/nowhere/checkpoint_5')


def found_of(variant, **options):
  """A checkpoint of ours that was never written."""
  values = random_values(shapes_of(**options))
  shapes = {name: value.shape for name, value in values.items()}
  return values, source.Source('old', 5, shapes, lambda: values, variant)


def variant_of(**options):
  return matching.variant_of(t5_config(**SIZES | options))


RATIONAL = {'activation': 'rational'}


def test_the_words_for_a_variant():
  assert variant_of() == 'GEGLU'
  assert variant_of(**RATIONAL) == 'Rational GLU'
  assert variant_of(activation='polynorm', gated=False) == 'PolyNorm'
  made = activations.rational.rational(version='B')
  assert variant_of(activation=made, gated=False) == 'Rational (version B)'
  settings = {
    'ACTIVATION': '@rational.rational()',
    'GATED': 'True',
    'ACTIVATION/rational.rational.version': "'A'",
  }
  assert saved.variant_of(settings) == variant_of(**RATIONAL)
  settings['ACTIVATION/rational.rational.version'] = "'B'"
  assert saved.variant_of(settings) == 'Rational GLU (version B)'


@pytest.mark.parametrize('scan', [False, True])
def test_another_variant_on_request(scan):
  values, found = found_of('GEGLU')
  shapes = shapes_of(scan_layers=scan, **RATIONAL)
  with pytest.raises(errors.UserError) as error:
    matching.initial(found, shapes, 'Rational GLU', False)
  text = str(error.value)
  assert 'is a checkpoint of GEGLU, this run is Rational GLU' in text
  assert 'mlp/activation/numerator: absent in the checkpoint, [6]' in text
  assert '--gin.INITIAL_CHECKPOINT_PARTIAL=True' in text
  taken, lines = matching.initial(found, shapes, 'Rational GLU', True)
  assert matching.shapes_of(shapes).keys() - taken.keys() == {
    name for name in matching.shapes_of(shapes) if '/activation/' in name
  }
  for name, value in source.unrolled(taken).items():
    np.testing.assert_array_equal(value, values[name])
  assert 'encoder/layers_*/mlp/activation/numerator' in lines[1]
  assert len(lines) == 2


def test_same_shapes_are_not_the_same_function():
  _, found = found_of('GEGLU')
  with pytest.raises(errors.UserError, match='another function'):
    matching.initial(found, shapes_of(), 'SwiGLU', False)
  taken, _ = matching.initial(found, shapes_of(), 'SwiGLU', True)
  assert taken.keys() == matching.shapes_of(shapes_of()).keys()
  # What nobody wrote down cannot be compared.
  _, unknown = found_of(None)
  matching.initial(unknown, shapes_of(), 'SwiGLU', False)


def test_coefficients_of_another_function_stay_behind():
  options = {'gated': False}
  _, found = found_of('PolyNorm', activation='polynorm', **options)
  wanted = shapes_of(activation='polyrelu', **options)
  taken, lines = matching.initial(found, wanted, 'PolyReLU', True)
  assert not [name for name in taken if '/activation/' in name]
  assert len([name for name in taken if '/mlp/' in name]) == 8
  assert 'Left in the checkpoint: decoder/layers_*/mlp/activation' in lines[2]


@pytest.mark.parametrize(
  'options', [{'emb_dim': 16}, {'num_decoder_layers': 3}, {'vocab_size': 72}]
)
def test_another_size_is_refused_even_on_request(options):
  _, found = found_of('GEGLU')
  with pytest.raises(errors.UserError, match='of another model') as error:
    matching.initial(found, shapes_of(**options), 'GEGLU', True)
  assert 'gin/models/' in str(error.value)


def test_our_own_checkpoints(tmp_path):
  params = traverse_util.unflatten_dict(random_values(shapes_of()), sep='/')
  config = "ACTIVATION = 'gelu'\nGATED = True\n"
  folder = saved.check_output(str(tmp_path / 'imported'))
  saved.write(folder, 7, params, config)
  assert not folder.with_name('imported.partial').exists()
  for path in (folder, folder / 'checkpoints/7'):
    found = saved.open_checkpoint(path)
    assert (found.step, found.variant) == (7, 'GEGLU')
    jax.tree.map(
      np.testing.assert_array_equal,
      matching.exact(found, shapes_of(), ''),
      params,
    )
  with pytest.raises(errors.UserError, match='is there already'):
    saved.check_output(str(folder))
  with pytest.raises(errors.UserError, match='remote storage'):
    saved.check_output('gs://bucket/x')
  with pytest.raises(errors.UserError, match='holds no checkpoint of t5x_var'):
    saved.open_checkpoint(tmp_path)
  os.truncate(folder / 'checkpoints/7/state/_METADATA', 30)
  with pytest.raises(errors.UserError, match='checkpoints/7 cannot be read'):
    saved.open_checkpoint(folder)


@pytest.fixture
def imported(tmp_path):
  """Random weights of small_run's model as GEGLU, the way an import is."""
  values = random_values(shapes_of(**SMALL))
  folder = saved.check_output(str(tmp_path / 'imported'))
  params = traverse_util.unflatten_dict(values, sep='/')
  saved.write(folder, 9, params, "ACTIVATION = 'gelu'\nGATED = True\n")
  return folder, params


def test_a_rational_starts_as_the_gelu_it_replaces(imported, tmp_path, capfd):
  """And a run that goes on does not look back."""
  folder, params = imported
  partial = {'initial_checkpoint_partial': True}
  run(tmp_path / 'run', 2, initial_checkpoint=str(folder), **partial)
  said = capfd.readouterr().err
  assert 'imported/checkpoints/9 (step 9): 29 of 33 parameters taken' in said
  assert 'Initialised afresh: decoder/layers_*/mlp/activation/' in said
  config = t5_config(**SIZES | SMALL, activation='gelu')
  evaluate = jax.jit(train_step.make_eval_step(network.Transformer(config), 1))
  sums = [evaluate(params, batch) for batch in Numbered(last=16).open()]
  gelu = records.per_token(jax.tree.map(lambda *x: float(sum(x)), *sums))
  rational = losses(tmp_path / 'run', 'eval')[0][0]
  assert abs(rational - gelu['loss']) < 1e-3
  assert sorted(losses(tmp_path / 'run')) == [1, 2]
  run(tmp_path / 'run', 2, initial_checkpoint='/nowhere', **partial)
  assert 'Going on from the checkpoint of step 2' in capfd.readouterr().err


def test_a_run_refuses_what_it_cannot_start_from(imported, tmp_path):
  folder, _ = imported
  with pytest.raises(errors.UserError, match=r'INITIAL_CHECKPOINT_PATH=.*imp'):
    run(folder, 3, activation='gelu')
  with pytest.raises(errors.UserError, match='INITIAL_CHECKPOINT_PARTIAL'):
    run(tmp_path / 'run', 3, initial_checkpoint=str(folder))
  with pytest.raises(errors.UserError, match='/nowhere holds no checkpoint'):
    run(tmp_path / 'run', 3, initial_checkpoint='/nowhere')


def test_weights_are_placed_as_the_state_is():
  """Sharded, and an optimizer that copies parameters sees the new ones."""
  mesh = mesh_of(2, 2)
  sharding = jax.sharding.NamedSharding(mesh, jax.P('data', 'model'))
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  state = train_state.TrainState(
    step=jnp.int32(0),
    params={
      'a': {'b': jnp.zeros((4, 6), device=sharding)},
      'c': jnp.ones(3, device=everywhere),
    },
    opt_state=None,
    sums={},
  )
  # Its state is a copy of the parameters.
  tx = optax.GradientTransformation(lambda params: params, None)
  state = state.replace(opt_state=tx.init(state.params))
  value = np.arange(24, dtype=np.float32).reshape(4, 6)
  state = train_state.with_weights(state, tx, {'a/b': value})
  for tree in (state.params, state.opt_state):
    np.testing.assert_array_equal(tree['a']['b'], value)
    np.testing.assert_array_equal(tree['c'], np.ones(3))
    assert tree['a']['b'].sharding == sharding


def test_the_command_that_imports(tmp_path):
  """The tiny model, by its files."""
  sizes = {'vocab_size': 384, 'emb_dim': 128, 'num_heads': 4, 'head_dim': 32}
  step = write_t5x(tmp_path, random_values(shapes_of(**sizes, mlp_dim=256)))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 't5x_variants.import_weights'),
      '--gin_file=gin/models/tiny.gin',
      '--gin_file=gin/variants/geglu.gin',
      f'--checkpoint={step}',
      f'--output={tmp_path}/imported',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  assert 'INITIAL_CHECKPOINT_PATH' in done.stderr
  found = saved.open_checkpoint(tmp_path / 'imported')
  assert (found.step, found.variant) == (7, 'GEGLU')
