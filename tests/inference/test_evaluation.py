"""Evaluation of a checkpoint: the sum over the whole split, on any mesh."""

import json

import pytest
from network_cases import model, params_of
from small_run import VOCAB, Numbered, mesh_of

from t5x_variants import errors
from t5x_variants.distributed import partitioning
from t5x_variants.inference import evaluation
from t5x_variants.training import losses
from t5x_variants.weights import saved

SIZES = {'num_encoder_layers': 1, 'num_decoder_layers': 1, 'vocab_size': VOCAB}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'run'
  saved.write(
    folder, 3, params_of(model(**SIZES)), "ACTIVATION = 'gelu'\nGATED = True\n"
  )
  return folder


def run(checkpoint, dataset=None, module=None, mesh=None, **options):
  return evaluation.evaluate(
    module or model(**SIZES),
    checkpoint=str(checkpoint),
    dataset=dataset or Numbered(last=24),
    mesh=mesh or mesh_of(1),
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    **options,
  )


def test_it_is_the_mean_over_all_tokens(checkpoint, tmp_path, capsys):
  found = run(checkpoint, output=str(tmp_path / 'new/out.json'))
  module, total, tokens = model(**SIZES), 0.0, 0
  for batch in Numbered(last=24).open():
    logits = module.apply(
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
  assert json.loads(capsys.readouterr().out) == found
  assert json.loads((tmp_path / 'new/out.json').read_text()) == found


def test_meshes_and_microbatches_agree(checkpoint):
  one = run(checkpoint)
  for options in ({'mesh': mesh_of(4, 2)}, {'num_microbatches': 4}):
    assert run(checkpoint, **options) == pytest.approx(one, rel=1e-5)
  assert run(checkpoint, eval_steps=1)['batches'] == 1


def test_bad_input_is_refused(checkpoint, tmp_path):
  with pytest.raises(errors.UserError, match='BATCH_SIZE is 8'):
    run(checkpoint, num_microbatches=3)
  with pytest.raises(errors.UserError, match='VOCAB_SIZE 13'):
    small = model(**SIZES | {'vocab_size': 13})
    saved.write(tmp_path / 'small', 1, params_of(small), '')
    run(tmp_path / 'small', module=small)
  with pytest.raises(errors.UserError, match='of GEGLU, and GELU was asked'):
    run(checkpoint, module=model(**SIZES, gated=False))
  with pytest.raises(errors.UserError, match='of GEGLU, and SwiGLU was asked'):
    run(checkpoint, module=model(**SIZES, activation='swish'))
  with pytest.raises(errors.UserError, match='not a checkpoint of this model'):
    run(checkpoint, module=model(**SIZES | {'num_encoder_layers': 2}))
  with pytest.raises(errors.UserError, match='holds no checkpoint'):
    run(tmp_path / 'nowhere')
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='EVAL_OUTPUT'):
    run(checkpoint, output=str(tmp_path / 'file/out.json'))
