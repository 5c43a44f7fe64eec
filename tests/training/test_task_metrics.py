"""Decoding a task's split and judging it: by hand, by file, task by task."""

import functools
import itertools
import json
import statistics

import jax
import numpy as np
import pytest
import seqio
import small_run
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
from t5x_variants.data.text import texts, vocabularies
from t5x_variants.distributed import partitioning
from t5x_variants.inference import evaluation, inference
from t5x_variants.model import decoding
from t5x_variants.run_dir import records
from t5x_variants.training import task_metrics


def even(targets, predictions):
  """Per cent with an even number of characters."""
  assert len(targets) == len(predictions)
  return {
    'even': seqio.metrics.Scalar(
      np.mean([len(p) % 2 == 0 for p in predictions]) * 100
    )
  }


def nats(targets, scores):
  """The log-likelihood of all targets."""
  return {'nats': -float(np.sum(scores))}


@pytest.fixture(scope='module')
def mixture():
  short = register('metrics_short', SHORT, [same, even])
  long = register('metrics_long', LONG, [same])
  register('metrics_none', SHORT, [])
  seqio.MixtureRegistry.add('metrics_both', [short, long], default_rate=1)
  return 'metrics_both'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return saved_params(tmp_path_factory.mktemp('weights') / 'run')


def evaluate(checkpoint, name, mesh=None, count=None, **options):
  return evaluation.evaluate(
    model(),
    checkpoint=str(checkpoint),
    dataset=dataset(name),
    mesh=mesh or mesh_of(1),
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    task_decoding=task_metrics.Settings(batch_size=3, count=count),
    **options,
  )


def test_a_mixture_is_decoded_and_judged_task_by_task(
  mixture, checkpoint, tmp_path, capsys
):
  output = tmp_path / 'new/predictions.jsonl'
  found = evaluate(
    checkpoint, mixture, mesh_of(2, 2), predictions_output=str(output)
  )
  assert json.loads(capsys.readouterr().out) == found
  records = [
    json.loads(line) for line in output.read_text('utf-8').splitlines()
  ]
  # In order, whole, whatever was cut for the model.
  assert [(r['inputs'], r['target']) for r in records] == LONG + SHORT
  decode = jax.jit(
    functools.partial(decoding.greedy, model(), length=6, eos_id=1)
  )
  vocabulary = vocabularies.byte()
  rows = np.stack(
    [
      texts.padded(texts.encode(vocabulary, r['inputs']), 40, 1)
      for r in records
    ]
  )
  tokens, _ = decode(params(), rows)
  expected = [texts.decode(vocabulary, row[0]) for row in tokens]
  assert [r['prediction'] for r in records] == expected
  short = expected[len(LONG) :]
  values = {
    'metrics_long/same': 0.0,
    'metrics_long/whole': 31.0,
    'metrics_short/same': 0.0,
    'metrics_short/whole': 8.0,
    'metrics_short/even': 25.0 * sum(len(text) % 2 == 0 for text in short),
    'average': 0.0,
  }
  values['average'] = ((31 / 2) + (8 + values['metrics_short/even']) / 3) / 2
  assert {n: v for n, v in found.items() if n in values} == pytest.approx(
    values
  )
  assert set(found) - set(values) == {
    'loss',
    'accuracy',
    'target_tokens',
    'batches',
    'step',
  }
  # And from the file, without the model.
  judge = functools.partial(
    evaluation.score,
    dataset=dataset(mixture),
    task_decoding=task_metrics.Settings(),
    predictions=str(output),
  )
  assert judge(output=str(tmp_path / 'judged')) == pytest.approx(values)
  assert json.loads((tmp_path / 'judged').read_text()) == pytest.approx(values)
  lines = output.read_text('utf-8').splitlines(keepends=True)
  output.write_text(''.join(lines[:-1]), encoding='utf-8')
  with pytest.raises(errors.UserError, match='5 lines and the split has 6'):
    judge()
  for line in ('{"prediction": 3}', '[]', '{'):
    output.write_text(line)
    with pytest.raises(errors.UserError, match='line 1 is no prediction'):
      judge()
  with pytest.raises(errors.UserError, match='cannot be read'):
    judge(predictions=str(tmp_path / 'nowhere'))
  with pytest.raises(errors.UserError, match='metrics_none has no metric'):
    judge(dataset=dataset('metrics_none'))


def test_the_one_task_of_a_run_is_called_task(mixture, checkpoint):
  settings = task_metrics.Settings(batch_size=2, count=3)
  register('metrics_scored', SHORT, [same, nats, even])
  found = task_metrics.Evaluator(
    model(), dataset('metrics_scored'), settings, mesh_of(1)
  )
  names = ['task/same', 'task/whole', 'task/even', 'task/nats', 'average']
  assert found.names == names
  first = found(params())
  assert list(first) == found.names
  of_predictions = [first[name] for name in names[:3]]
  assert first['average'] == pytest.approx(statistics.fmean(of_predictions))
  (scores,) = found.score(params()).values()
  assert first['task/nats'] == pytest.approx(-float(scores.sum()))
  assert found(params()) == first
  assert found._decode._cache_size() == 1, 'one program'
  targets = {'metrics_scored': [text for _, text in SHORT[:3]]}
  assert found.metrics(targets, {})['task/same'] == 100
  with pytest.raises(errors.UserError, match='4 predictions and 3 examples'):
    found.metrics({'metrics_scored': ['a'] * 4}, {})


def test_there_may_be_nothing_to_judge(mixture):
  make = functools.partial(task_metrics.Evaluator, model(), mesh=mesh_of(1))
  for name, options, count, why in (
    ('metrics_none', {}, None, 'metrics_none has no metric'),
    ('metrics_short', {}, 0, 'METRIC_EXAMPLES is 0'),
    ('metrics_short', {'prepared': 'x'}, None, 'prepared data'),
  ):
    found = make(dataset(name, **options), task_metrics.Settings(count=count))
    assert found({}) == {} and found.names == []
    assert why in found.missing()


@pytest.mark.slow
def test_a_split_is_answered_and_scored_in_its_order(
  mixture, checkpoint, tmp_path
):
  go = functools.partial(
    inference.infer,
    model(),
    checkpoint=str(checkpoint),
    vocabulary=None,
    inputs=None,
    decoder=decoding.greedy,
    input_length=40,
    decode_length=6,
    batch_size=4,
    mesh=mesh_of(1),
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    dataset=dataset(mixture),
  )
  found = {}
  for mode in inference.MODES:
    output = tmp_path / f'{mode}.jsonl'
    go(mode=mode, output=str(output))
    lines = output.read_text('utf-8').splitlines()
    found[mode] = [json.loads(line) for line in lines]
    texts_found = [(r['inputs'], r['targets']) for r in found[mode]]
    assert texts_found == LONG + SHORT
    assert [bool(r.get('cut')) for r in found[mode]] == [True] + [False] * 5
  whole = output.read_bytes()
  output.write_bytes(whole[: len(whole) - 9])
  go(mode='score', output=str(output))
  assert output.read_bytes() == whole
  tasks = task_metrics.Evaluator(
    model(), dataset(mixture), task_metrics.Settings(batch_size=4), mesh_of(1)
  )
  expected = tasks.predict(params(), tasks.tasks)
  answers = [r['predictions'][0]['text'] for r in found['predict']]
  assert answers == list(itertools.chain(*expected.values()))
  # The first target is cut to five letters and EOS.
  score = jax.jit(functools.partial(decoding.log_probabilities, model()))
  inputs, targets = (
    np.stack(
      [
        texts.padded(texts.encode(vocabularies.byte(), t), size, 1)
        for t in column
      ]
    )
    for column, size in zip(
      zip(*LONG + SHORT, strict=True), (40, 6), strict=True
    )
  )
  np.testing.assert_allclose(
    [r['log_probability'] for r in found['score']],
    score(params(), inputs, targets),
    rtol=1e-4,
  )
  with pytest.raises(errors.UserError, match='give one of them'):
    go(mode='score', inputs='a.jsonl', output=str(tmp_path / 'x'))


@pytest.mark.slow
def test_a_run_records_what_evaluation_finds(mixture, tmp_path, monkeypatch):
  """At each evaluation, in the test at its end, and of its checkpoint."""
  monkeypatch.setattr(small_run, 'VOCAB', 384)
  settings = task_metrics.Settings(batch_size=4)
  register('metrics_run', SHORT, [same, even, nats])
  small_run.run(
    tmp_path,
    4,
    activation='relu',
    eval_dataset=dataset('metrics_run'),
    periods=small_run.periods(log=4, eval=2, eval_steps=9, checkpoint=99),
    task_decoding=settings,
    best_metric='task/even',
    test_split='test',
  )
  before, *found = records.read(tmp_path, 'eval')
  (test,) = records.read(tmp_path, 'test')
  assert [r['step'] for r in (before, *found)] == [0, 2, 4]
  best = max(found, key=lambda r: (r['task/even'], -r['loss']))
  # The split 'test' of these tasks is the same as their 'validation'.
  assert {**test, 'time': 0, 'split': ''} == {**best, 'time': 0, 'split': ''}
  names = {'task/same', 'task/whole', 'task/even', 'task/nats', 'average'}
  assert names < set(test)


def test_bad_input_is_refused(mixture):
  with pytest.raises(errors.UserError, match=r"'train'.*'test', 'validation'"):
    examples.open_split(mixture, LENGTHS, 'train')
  with pytest.raises(errors.UserError, match='not registered'):
    examples.open_split('unheard_of', LENGTHS, 'train')
  with pytest.raises(errors.UserError, match='has no example'):
    examples.open_split(mixture, LENGTHS, 'test', count=0)
