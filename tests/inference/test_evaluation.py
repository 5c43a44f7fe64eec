"""Evaluation of a checkpoint: the sum over the whole split, on any mesh."""

import json

import pytest
import quick_jit
from network_cases import model, params_of
from small_run import VOCAB, Numbered, mesh_of

from t5x_variants import errors
from t5x_variants.distributed import partitioning
from t5x_variants.inference import evaluation
from t5x_variants.training import losses
from t5x_variants.weights import saved

quick = quick_jit.quick
SIZES = {'num_encoder_layers': 1, 'num_decoder_layers': 1, 'vocab_size': VOCAB}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'run'
  saved.write(
    folder, 3, params_of(model(**SIZES)), "ACTIVATION = 'gelu'\nGATED = True\n"
  )
  return folder


def run(checkpoint, module=None, mesh=None, **options):
  return evaluation.evaluate(
    module or model(**SIZES),
    checkpoint=str(checkpoint),
    dataset=Numbered(last=24),
    mesh=mesh or mesh_of(1),
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    **options,
  )


def test_it_is_the_mean_over_all_tokens(checkpoint, tmp_path, capsys):
  found = run(checkpoint, output=str(tmp_path / 'new/out.json'))
  said = capsys.readouterr().out
  module, total, tokens = model(**SIZES), 0.0, 0
  for batch in Numbered(last=24).open():
    logits = quick_jit.jit(module.apply, static_argnames='enable_dropout')(
      {'params': params_of(module)},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      enable_dropout=False,
    )
    _, sums = losses.cross_entropy(
      logits, batch['decoder_target_tokens'], batch['decoder_loss_weights']
    )
    total, tokens = total + float(sums['loss']), tokens + int(sums['weights'])
  assert found['loss'] == pytest.approx(total / tokens, rel=1e-5)
  assert (found['target_tokens'], found['batches']) == (tokens, 3)
  assert found['step'] == 3
  assert json.loads(said) == found
  assert json.loads((tmp_path / 'new/out.json').read_text()) == found
  for options in ({'mesh': mesh_of(4, 2)}, {'num_microbatches': 4}):
    assert run(checkpoint, **options) == pytest.approx(found, rel=1e-5)
  assert run(checkpoint, eval_steps=1)['batches'] == 1


def test_bad_input_is_refused(checkpoint, tmp_path):
  small = model(**SIZES | {'vocab_size': 13})
  saved.write(tmp_path / 'small', 1, params_of(small), '')
  (tmp_path / 'file').write_text('')
  output = str(tmp_path / 'file/out.json')
  deep = model(**SIZES | {'num_encoder_layers': 2})
  for folder, options, words in (
    (checkpoint, {'num_microbatches': 3}, 'BATCH_SIZE is 8'),
    (tmp_path / 'small', {'module': small}, 'VOCAB_SIZE 13'),
    (
      checkpoint,
      {'module': model(**SIZES, gated=False)},
      'of GEGLU, and GELU was asked',
    ),
    (
      checkpoint,
      {'module': model(**SIZES, activation='swish')},
      'of GEGLU, and SwiGLU was asked',
    ),
    (checkpoint, {'module': deep}, 'not a checkpoint of this model'),
    (tmp_path / 'nowhere', {}, 'holds no checkpoint'),
    (checkpoint, {'output': output}, 'EVAL_OUTPUT'),
  ):
    with pytest.raises(errors.UserError, match=words):
      run(folder, **options)
