"""GLUE, SuperGLUE and SQuAD: how answers are judged."""

import benchmark_cases
import pytest
from benchmark_cases import LENGTHS, TEXTS, register, subtasks

from t5x_variants.data.base._tensorflow import seqio
from t5x_variants.data.benchmarks import registry as benchmarks
from t5x_variants.data.benchmarks import super_glue
from t5x_variants.data.tasks import low_data
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.training import task_metrics

folder = benchmark_cases.folder


def judge(name, answer, folder, split='validation'):
  """The metrics of a task, answered by a function of (target, example)."""
  (task,) = subtasks(register(name, folder))
  found = list(
    task.get_dataset(LENGTHS, split, shuffle=False).as_numpy_iterator()
  )
  targets = [
    task.postprocess_fn(x['targets_pretokenized'], example=x, is_target=True)
    for x in found
  ]
  predictions = [
    task.postprocess_fn(
      answer(x['targets_pretokenized'].decode()), example=x, is_target=False
    )
    for x in found
  ]
  scored = {}
  for metric in task.predict_metric_fns:
    scored |= metric(targets=targets, predictions=predictions)
  return scored


METRICS = {
  'glue_cola': {'matthews'},
  'glue_sst2': {'accuracy'},
  'glue_mrpc': {'f1', 'accuracy'},
  'glue_stsb': {'pearson', 'spearman'},
  'glue_qqp': {'f1', 'accuracy'},
  'glue_qnli': {'accuracy'},
  'glue_rte': {'accuracy'},
  'super_glue_boolq': {'accuracy'},
  'super_glue_cb': {'f1', 'accuracy'},
  'super_glue_copa': {'accuracy'},
  'super_glue_multirc': {'f1a', 'exact_match'},
  'super_glue_record': {'f1', 'exact_match'},
  'super_glue_rte': {'accuracy'},
  'super_glue_wic': {'accuracy'},
  'squad': {'f1', 'exact_match'},
}


@pytest.mark.parametrize('name', METRICS)
def test_the_metrics_of_the_papers_tables(folder, name):
  right = judge(name, lambda text: f'{text}\n', folder)
  assert set(right) == METRICS[name]
  # STS-B's targets are rounded, its gold scores are not.
  assert all(value > 99.8 for value in right.values())
  assert name == 'glue_stsb' or set(right.values()) == {100.0}
  wrong = judge(name, lambda text: '', folder)
  assert set(wrong.values()) == {0.0}


def test_a_low_data_run_of_mnli_tests_on_both(folder):
  name = low_data.task(
    register('mnli_matched', folder),
    seed=1,
    train_examples=1,
    validation_examples=2,
    test_split=['validation', 'validation_mismatched'],
  )

  def read(split):
    dataset = tasks.get(name).get_dataset(LENGTHS, split, shuffle=False)
    return [
      (x['inputs_pretokenized'].decode(), x['targets_pretokenized'].decode())
      for x in dataset.as_numpy_iterator()
    ]

  drawn = [*read('train'), *read('validation')]
  assert sorted(drawn) == sorted(TEXTS['glue_mnli_matched', 'train'])
  assert read('test') == [
    *TEXTS['glue_mnli_matched', 'validation'],
    *TEXTS['glue_mnli_mismatched', 'validation'],
  ]


def test_any_gold_answer_will_do(folder):
  assert judge('squad', lambda _: 'In  rome!', folder) == {
    'exact_match': 50.0,
    'f1': 50.0,
  }
  found = judge('super_glue_record', lambda _: 'bob', folder)
  assert found == {'exact_match': 100.0, 'f1': 100.0}


def test_wsc_compares_what_is_named(folder):
  # Of its three candidates the second is false.
  found = judge('super_glue_wsc', lambda text: text, folder)
  assert found == {'accuracy': pytest.approx(200 / 3)}
  found = judge('super_glue_wsc', lambda _: 'Bob', folder)
  assert found == {'accuracy': pytest.approx(200 / 3)}
  assert judge('super_glue_wsc', lambda _: ' ', folder) == {'accuracy': 0.0}


@pytest.mark.parametrize(
  ('candidate', 'prediction', 'same'),
  [
    ('the old man', 'The Man', 'True'),
    ('man', 'his very old man', 'True'),
    ('old man', 'young man', 'False'),
    ("Bob's hat", 'Bob', 'False'),
    ("Bob's hat", "bob's hat", 'True'),
    ('Bob', 'Bobby', 'False'),
    ('Bob', ' ', ''),
    ('Bob', 'the', ''),
  ],
)
def test_wsc_s_rule(candidate, prediction, same):
  example = {'targets_pretokenized': candidate.encode(), 'gold': b'"True"'}
  found = super_glue.same_referent(prediction, example=example)
  assert found == same
  assert super_glue.same_referent('', example=example, is_target=True) == 'True'


@pytest.mark.parametrize(
  ('text', 'pronoun', 'index', 'marked'),
  [
    ('I saw it and it ran.', 'it', 4, 'I saw it and *it* ran.'),
    ('I saw it and it ran.', 'it', 3, 'I saw *it* and it ran.'),
    ('"Good for him," he said.', 'him', 2, '"Good for *him*," he said.'),
    ('She  left, did she', 'she', 0, '*She*  left, did she'),
    ('then the heir said he', 'he', 1, 'then the heir said *he*'),
    ('what they scold is', 'they scold', 1, 'what *they scold* is'),
  ],
)
def test_wsc_marks_the_pronoun(text, pronoun, index, marked):
  assert super_glue.marked(text, pronoun, index) == marked


def test_wic_says_the_part_of_speech_where_it_is_known():
  row = {'pos': 'N', 'sentence1': 'a', 'sentence2': 'b', 'word': 'c'}
  (example,) = benchmarks.RECIPES['super_glue_wic'].convert(
    row | {'label': True}, 'train'
  )
  assert example['inputs'] == 'wic pos: N sentence1: a sentence2: b word: c'
  assert example['targets'] == 'True'


def test_seqio_s_own_evaluator_judges_them(folder):
  """As t5x has it: every metric of every task of a mixture."""
  name = register(['mrpc', 'multirc', 'wsc', 'squad'], folder)
  evaluator = seqio.Evaluator(
    name,
    seqio.EncDecFeatureConverter(pack=False),
    eval_split='validation',
    sequence_length=LENGTHS,
  )

  def predict(dataset):
    return [
      (i, list(x['decoder_target_tokens']))
      for i, x in dataset.as_numpy_iterator()
    ]

  found, _ = evaluator.evaluate(
    compute_metrics=True, predict_fn=predict, score_fn=None
  )
  metrics = found.result()
  assert metrics == {
    'glue_mrpc': {'accuracy': 100.0, 'f1': 100.0},
    'super_glue_multirc': {'exact_match': 100.0, 'f1a': 100.0},
    'super_glue_wsc': {'accuracy': pytest.approx(200 / 3)},
    'squad': {'exact_match': 100.0, 'f1': 100.0},
  }


class Judged:
  """What `task_metrics` knows of a task, with one metric."""

  predict_metric_fns = ('accuracy',)
  score_metric_fns = not_computed = ()

  def __init__(self, name):
    self.name = name

  def predict_metrics(self, value):
    return {'accuracy': value}


def test_mnli_is_one_task_of_an_average():
  values = {'glue_mnli_matched': 80, 'glue_mnli_mismatched': 60, 'glue_rte': 10}

  class Dataset:
    def examples(self, count):
      return [Judged(name) for name in values]

  judge = task_metrics.Scorer(Dataset(), task_metrics.Settings())
  assert judge.metrics(values, {})['average'] == (70 + 10) / 2
