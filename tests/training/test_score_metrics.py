"""Metrics of scores: against seqio's own Evaluator and written-out sums."""

import json
import logging

import jax
import numpy as np
import pytest
import seqio
from inference_cases import model
from metric_tasks import (
  LENGTHS,
  LONG,
  SHORT,
  dataset,
  params,
  register,
  same,
  saved_params,
)
from small_run import mesh_of

from t5x_variants import errors
from t5x_variants.data.tasks import examples
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.distributed import partitioning
from t5x_variants.inference import evaluation
from t5x_variants.training import task_metrics

# Two inputs and two targets are cut; six rows fill a batch of four and a half.
PAIRS = SHORT + LONG


def likelihood(targets, scores):
  """Nats in all, and those of the longest target, which tell of the order."""
  assert len(targets) == len(scores)
  longest = int(np.argmax([len(target) for target in targets]))
  return {
    'nats': seqio.metrics.Scalar(-float(np.sum(scores))),
    'of_longest': float(scores[longest]),
  }


def with_more(targets, predictions, aux_values):
  raise AssertionError('never called')


def unreadable(targets, predictions):
  return {'shown': seqio.metrics.Text('a text'), 'count': len(targets)}


@pytest.fixture(scope='module')
def mixture():
  names = [
    register('scores_both', PAIRS, [likelihood, same]),
    register('scores_only', SHORT, [likelihood]),
    register('scores_none', SHORT, [same]),
  ]
  seqio.MixtureRegistry.add('scores_mixture', names, default_rate=1)
  return 'scores_mixture'


def evaluator(name, mesh=None):
  settings = task_metrics.Settings(batch_size=4)
  return task_metrics.Evaluator(
    model(), dataset(name), settings, mesh or mesh_of(1)
  )


@jax.jit
def logits_of(params, inputs, shifted, targets):
  """Of one row, which is as long as the model's: compiled once."""
  return model().apply(
    {'params': params}, inputs, shifted, targets, enable_dropout=False
  )


def written_out(inputs, targets):
  """Sums of log-softmax over the targets' tokens, in float64, row by row."""
  found = []
  for row, target in zip(inputs, targets, strict=True):
    row = np.pad(row, (0, LENGTHS['inputs'] - len(row)))
    target = np.pad(target, (0, LENGTHS['targets'] - len(target)))
    shifted = np.pad(target, (1, 0))[:-1]
    logits = logits_of(params(), row[None], shifted[None], target[None])
    logits = np.asarray(logits[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_tokens = log_softmax[np.arange(len(target)), target]
    found.append(of_tokens[target > 0].sum())
  return np.array(found)


def answers(numbers):
  """Tokens that stand in for what a model predicts: 'a', 'aa', 'a', 'aa' ..."""
  letter, eos = ord('a') + 3, 1
  rows = ([letter, eos, 0], [letter, letter, eos])
  return [rows[number % 2] for number in numbers]


def seqio_s(name):
  """The metrics that seqio's Evaluator computes, by task."""

  def batches(data):
    return data.batch(3).as_numpy_iterator()

  def score(data, *unused, **options):
    found = []
    for numbers, batch in batches(data):
      values = written_out(
        batch['encoder_input_tokens'], batch['decoder_target_tokens']
      )
      found += zip(numbers.tolist(), values.tolist(), strict=True)
    return found

  def predict(data, *unused, **options):
    numbers = [number for some, _ in batches(data) for number in some.tolist()]
    return list(zip(numbers, map(np.array, answers(numbers)), strict=True))

  judge = seqio.Evaluator(
    name,
    seqio.EncDecFeatureConverter(pack=False),
    'validation',
    sequence_length=LENGTHS,
    async_compute_metrics=False,
  )
  found, _ = judge.evaluate(
    compute_metrics=True, score_fn=score, predict_fn=predict
  )
  return {
    f'{task}/{name}': float(getattr(value, 'value', value))
    for task, values in found.result().items()
    for name, value in values.items()
  }


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_all_metrics_equal_those_of_seqio_s_evaluator(mixture):
  """With both kinds, one, and none; cut targets; a batch that is not full."""
  judge = evaluator(mixture, mesh_of(2, 2))
  texts = {
    task.name: [task.text(row) for row in answers(range(len(task)))]
    for task in judge.predicted
  }
  found = judge.metrics(texts, judge.score(params()))
  expected = seqio_s(mixture)
  assert set(expected) == {
    *(f'scores_both/{x}' for x in ('nats', 'of_longest', 'same', 'whole')),
    *(f'scores_only/{x}' for x in ('nats', 'of_longest')),
    *(f'scores_none/{x}' for x in ('same', 'whole')),
  }
  assert expected['scores_none/same'] > 0
  # Of predictions alone: nats and per cent have no mean.
  of_tasks = (
    (expected[f'{name}/same'] + expected[f'{name}/whole']) / 2
    for name in ('scores_both', 'scores_none')
  )
  expected['average'] = sum(of_tasks) / 2
  assert found == pytest.approx(expected, rel=1e-5)
  assert sorted(judge.names) == sorted(found)


def test_scores_are_of_the_targets_as_they_were_cut(mixture):
  (task,) = examples.open_split('scores_both', LENGTHS, 'validation')
  assert max(map(len, task.target_ids)) == 6 < 30 == max(map(len, task.targets))
  found = evaluator('scores_both').score(params())['scores_both']
  assert found.shape == (6,) and found.dtype == np.float32
  expected = written_out(task.input_ids, task.target_ids)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_checkpoint_and_a_file_of_predictions(mixture, tmp_path, capsys):
  found = evaluation.evaluate(
    model(),
    checkpoint=str(saved_params(tmp_path / 'run')),
    dataset=dataset('scores_only'),
    mesh=mesh_of(1),
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    task_decoding=task_metrics.Settings(batch_size=4),
  )
  said = capsys.readouterr()
  assert json.loads(said.out) == found
  assert not [name for name in found if name in ('average', 'task/same')]
  # Nothing is cut here, and the loss is of the same tokens.
  tokens = found['target_tokens']
  assert found['task/nats'] == pytest.approx(found['loss'] * tokens, rel=1e-4)
  assert f'WARNING: The held-out loss and accuracy are means over {tokens}' in (
    said.err
  )
  path = tmp_path / 'predictions.jsonl'
  path.write_text('{"prediction": "A"}\n' * len(PAIRS))

  def judge(name):
    return evaluation.score(
      dataset=dataset(name),
      task_decoding=task_metrics.Settings(),
      predictions=str(path),
    )

  assert set(judge('scores_both')) == {'task/same', 'task/whole', 'average'}
  (line,) = capsys.readouterr().err.splitlines()
  assert 'Not computed: the metrics of scores of scores_both' in line
  with pytest.raises(errors.UserError, match='of scores_only need a model'):
    judge('scores_only')


def test_what_is_not_computed_is_said(capsys, caplog):
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(same).empty()
  register('scores_other', SHORT, [same, with_more, unreadable], [metric])
  judge = evaluator('scores_other')
  (line,) = capsys.readouterr().err.splitlines()
  assert 'not computed: ' in line and 'test_score_metrics.with_more' in line
  assert 'FromMetricFun' in line and 'same' not in line
  examples._say_no_number.cache_clear()
  texts = {'scores_other': [text for _, text in SHORT]}
  with caplog.at_level(logging.WARNING, 't5x_variants'):
    for _ in range(2):
      found = judge.metrics(texts, {})
  assert set(found) == {'task/same', 'task/whole', 'task/count', 'average'}
  (said,) = [record.getMessage() for record in caplog.records]
  assert "'shown' of scores_other is no number but Text" in said


def test_two_metrics_of_one_name_are_refused():
  def nats(targets, predictions):
    return {'nats': 0.0}

  register('scores_twice', SHORT, [same, same])
  register('scores_across', SHORT, [nats, likelihood])
  texts = [text for _, text in SHORT]
  with pytest.raises(errors.UserError, match="two metrics called 'same'"):
    evaluator('scores_twice').metrics({'scores_twice': texts}, {})
  across = {'scores_across': texts}, {'scores_across': [-1.0] * 4}
  with pytest.raises(errors.UserError, match="'nats', of predictions and of"):
    evaluator('scores_across').metrics(*across)
  with pytest.raises(errors.UserError, match='3 scores and 4 examples'):
    evaluator('scores_across').metrics(across[0], {'scores_across': [-1.0] * 3})


def test_the_loss_that_our_tasks_have_for_t5x_is_not_computed_again():
  register('scores_loss', SHORT, [tasks.nats_per_token])
  judge = evaluator('scores_loss')
  assert judge.names == [] and judge.scored == []
