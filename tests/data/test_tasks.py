"""Text-to-text tasks: metrics, labels, and what seqio is told of them."""

import json

import numpy as np
import pytest

from t5x_variants import errors
from t5x_variants.cli import gin_utils
from t5x_variants.data.tasks import metrics as scores
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies

LENGTHS = {'inputs': 32, 'targets': 8}


def pairs(path, targets):
  lines = [
    json.dumps({'inputs': f'question {i}', 'targets': target})
    for i, target in enumerate(targets)
  ]
  path.write_text('\n'.join(lines))
  return corpora.pairs(str(path), str(path.with_name('held_out')))


@pytest.fixture
def source(tmp_path):
  held_out = {'inputs': 'question', 'targets': 'yes'}
  (tmp_path / 'held_out').write_text(json.dumps(held_out))
  return pairs(tmp_path / 'a.jsonl', ['yes', 'no'] * 3)


def test_a_task_has_the_metrics_it_was_given(source):
  name = tasks.text_to_text(
    source,
    vocabularies.byte(),
    prefix='p: ',
    metric_fns=[scores.accuracy],
    labels=['no', 'yes'],
  )
  task = tasks.get(name)
  assert task.predict_metric_fns == [scores.accuracy]
  assert not task.score_metric_fns
  (example,) = task.get_dataset(LENGTHS, 'validation').as_numpy_iterator()
  assert example['inputs_pretokenized'] == b'p: question'
  np.testing.assert_array_equal(example['targets'][-2:], [ord('s') + 3, 1])
  target = task.postprocess_fn(
    example['targets_pretokenized'], example=example, is_target=True
  )
  answers = [
    task.postprocess_fn(text, example=example, is_target=False)
    for text in ('yes\n', 'maybe')
  ]
  found = task.predict_metric_fns[0](targets=[target] * 2, predictions=answers)
  assert found == {'accuracy': 50.0}
  with pytest.raises(errors.UserError, match=r"'maybe'.*'no', 'yes'"):
    task.postprocess_fn('maybe', example=example, is_target=True)
  # Without metrics it is what it was; the name tells them apart.
  plain = tasks.text_to_text(source, vocabularies.byte(), prefix='p: ')
  assert plain != name
  assert tasks.get(plain).score_metric_fns == [tasks.nats_per_token]


GIN = """
from __gin__ import dynamic_registration
from t5x_variants.data.text import corpora
from t5x_variants.data.tasks import metrics as scores
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import vocabularies

NAME = @tasks.text_to_text()
tasks.text_to_text:
  source = @corpora.pairs()
  vocabulary = @vocabularies.byte()
  metric_fns = [@scores.f1]
scores.f1.positive = 'yes'
scores.f1.negative = 'no'
corpora.pairs.pattern = %PAIRS
"""


def test_a_metric_of_a_gin_file(source, tmp_path):
  (tmp_path / 'a.gin').write_text(GIN)
  pattern = str(tmp_path / 'a.jsonl')
  gin_utils.parse([str(tmp_path / 'a.gin')], [f'PAIRS={pattern!r}'])
  name = gin_utils.macro('NAME')
  (metric,) = tasks.get(name).predict_metric_fns
  assert metric(targets=['yes', 'no'], predictions=['yes', 'x']) == {
    'f1': pytest.approx(200 / 3)
  }


@pytest.mark.parametrize('ending', ['\n', '\r\n'])
def test_a_label_outside_is_refused_with_its_line(tmp_path, source, ending):
  path = tmp_path / 'b.jsonl'
  source = pairs(path, ['yes', 'no', 'perhaps', 'no'])
  lines = path.read_text().splitlines()
  path.write_bytes(ending.join(['', lines[0], 'no json', *lines[1:]]).encode())
  with pytest.raises(errors.UserError) as caught:
    tasks.text_to_text(source, vocabularies.byte(), labels=['yes', 'no'])
  for part in (f'{path}, line 5', "'perhaps'", "['yes', 'no']"):
    assert part in str(caught.value)


def test_slips_of_metrics_and_labels_are_refused(source):
  for labels in ('yes', ['yes'], [], [1, 2]):
    with pytest.raises(errors.UserError, match='LABELS is'):
      tasks.text_to_text(source, vocabularies.byte(), labels=labels)
  for metrics, labels, words in (
    ([scores.normalized], None, r'metrics.normalized takes'),
    (['acuracy'], None, "'acuracy'.*'accuracy', 'bleu'"),
    ('f1', None, "'f1' needs two labels"),
    ('f1', ['no', 'yes', 'maybe'], "'f1' needs two labels"),
    (['macro_f1'], None, "'macro_f1' needs labels"),
  ):
    with pytest.raises(errors.UserError, match=words):
      tasks.text_to_text(
        source, vocabularies.byte(), metric_fns=metrics, labels=labels
      )


def test_metrics_by_name_know_the_labels(source):
  name = tasks.text_to_text(
    source,
    vocabularies.byte(),
    metric_fns=['f1', 'macro_f1', scores.accuracy],
    labels=['no', 'yes'],
  )
  f1, macro, accuracy = tasks.get(name).predict_metric_fns
  given = ['yes', 'no', 'no'], ['yes', 'yes', 'no']
  assert f1(*given) == macro(*given) == {'f1': pytest.approx(200 / 3)}
  assert accuracy(*given) == {'accuracy': pytest.approx(200 / 3)}
