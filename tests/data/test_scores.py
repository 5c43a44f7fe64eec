"""Metrics, against hand-made cases and the official scripts' rules."""

import collections
import math
import re
import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from t5x_variants import errors
from t5x_variants.data.tasks import metrics as scores

YES, NO = 'yes', 'no'


def f1(targets, predictions):
  return scores.f1(targets, predictions, positive=YES, negative=NO)['f1']


def matthews(targets, predictions):
  return scores.matthews(targets, predictions)['matthews']


# Labels.


def test_accuracy_counts_nonsense_as_wrong():
  found = scores.accuracy([YES, NO, NO, YES], [YES, NO, '', 'yes no'])
  assert found == {'accuracy': 50.0}


def test_f1_of_counts():
  # 2 found, 1 found wrongly, 1 missed: 2 * 2 / (2 * 2 + 1 + 1).
  targets = [YES, YES, YES, NO, NO]
  assert f1(targets, [YES, YES, NO, YES, NO]) == pytest.approx(200 / 3)


@pytest.mark.parametrize('nonsense', ['', 'maybe', 'Yes', 'yes yes'])
def test_f1_of_nonsense_is_that_of_the_other_label(nonsense):
  targets = [YES, YES, NO, NO]
  assert f1(targets, [nonsense, YES, nonsense, NO]) == f1(
    targets, [NO, YES, YES, NO]
  )


def test_f1_of_one_class_only():
  """Hypothesis does the labels; nonsense is found for none of them."""
  assert f1([YES] * 3, [YES] * 3) == 100.0
  assert f1([NO] * 3, [''] * 3) == 0.0


LABELS = st.lists(
  st.tuples(st.sampled_from([YES, NO]), st.sampled_from([YES, NO])),
  min_size=1,
  max_size=30,
)


@hypothesis.given(LABELS)
def test_matthews_and_f1_of_any_counts(pairs):
  """Their formulas, of the four counts; 0 where they have no value."""
  targets, predictions = zip(*pairs, strict=True)
  n = collections.Counter(pairs)
  tp, tn = n[YES, YES], n[NO, NO]
  fp, fn = n[NO, YES], n[YES, NO]
  root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  wanted = (tp * tn - fp * fn) / root if root else 0.0
  assert matthews(targets, predictions) == pytest.approx(100 * wanted)
  wanted = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
  assert f1(targets, predictions) == pytest.approx(100 * wanted)


def test_matthews_takes_nonsense_for_a_third_class():
  """One class only gives 0, as in scikit-learn, with which GLUE is scored."""
  targets = [YES, NO, YES, NO]
  assert 0 < matthews(targets, [YES, NO, 'x', '']) < 100
  for answer in (YES, NO, '', 'maybe'):
    assert matthews(targets, [answer] * 4) == 0.0
    assert matthews([YES] * 4, [answer] * 4) == 0.0
    assert matthews([NO] * 4, [answer] * 4) == 0.0


def test_macro_f1_of_commitment_bank():
  labels = ['entailment', 'contradiction', 'neutral']
  e, c, n = labels
  targets = [e, e, c, c, n]
  # F1 by class: 2/3 (one of two, none wrongly), 4/5, and 0.
  predictions = [e, n, c, c, c]
  found = scores.macro_f1(targets, predictions, labels=labels)['f1']
  assert found == pytest.approx(100 * (2 / 3 + 4 / 5 + 0) / 3)
  # A class that is in neither counts as 0: the mean is always of three.
  found = scores.macro_f1([e, c], [e, c], labels=labels)['f1']
  assert found == pytest.approx(200 / 3)
  # Nonsense is found for no class, and missed for its own.
  found = scores.macro_f1([e, e, c], [e, '?', c], labels=labels)['f1']
  assert found == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)


# Numbers.


def test_correlations():
  targets = [0.0, 1.0, 2.0, 5.0]
  predictions = ['0.2', '1.2', '2.2', '5.2']
  assert scores.pearson(targets, predictions)['pearson'] == pytest.approx(100)
  squares = [str(x**2) for x in targets]
  assert scores.spearman(targets, squares)['spearman'] == pytest.approx(100)
  wanted = 100 * np.corrcoef(targets, np.square(targets))[0, 1]
  assert scores.pearson(targets, squares)['pearson'] == pytest.approx(wanted)
  falling = [str(-x) for x in targets]
  assert scores.spearman(targets, falling)['spearman'] == pytest.approx(-100)


def test_ranks_of_ties_are_their_mean():
  targets, predictions = [1, 2, 3, 4], ['1', '2', '2', '3']
  ranks = [1, 2.5, 2.5, 4]
  wanted = 100 * np.corrcoef(targets, ranks)[0, 1]
  found = scores.spearman(targets, predictions)['spearman']
  assert found == pytest.approx(wanted)


@pytest.mark.parametrize('text', ['', 'nan', 'inf', 'good', '1.0 2.0', '1e999'])
def test_no_number_counts_as_minus_one(text):
  targets = [0.0, 2.0, 5.0]
  for metric in (scores.pearson, scores.spearman):
    assert metric(targets, ['1', text, '4']) == metric(
      targets, ['1', '-1', '4']
    )


@pytest.mark.parametrize('metric', [scores.pearson, scores.spearman])
def test_a_constant_correlates_with_nothing(metric):
  for given in (([1, 2], ['', 'x']), ([3, 3], ['1', '2']), ([1], ['1'])):
    assert list(metric(*given).values()) == [0.0]


# Answers.

SQUAD = [
  # gold answers, prediction, exact match, F1
  (['the Eiffel Tower'], 'Eiffel tower', 1, 1),
  (['Eiffel Tower'], 'An Eiffel, tower!', 1, 1),
  (['U.S.'], 'US', 1, 1),
  (['U.S.'], 'U . S .', 0, 0),
  (["it's"], 'its', 1, 1),
  (['theatre'], 'the atre', 0, 0),
  (['well-known man'], 'well known man', 0, 2 * 1 / 5),
  (['Denver Broncos'], 'Broncos', 0, 2 / 3),
  (['Denver', 'Denver Broncos'], 'the Denver Broncos', 1, 1),
  (['a b', 'c d e'], 'c d', 0, 4 / 5),
  (['x x y'], 'x x x', 0, 2 / 3),
  (['1854'], '', 0, 0),
  # Nothing left of either: equal, but no word in common.
  (['the'], '', 1, 0),
  (['the'], 'a.', 1, 0),
  (['\u2019tis'], 'tis', 0, 0),
  (['x\u00a0y'], 'x y', 1, 1),
  (['  two\n words '], 'two\twords', 1, 1),
]


def test_answers_as_squad_compares_them():
  for golds, text, exact, shared in SQUAD:
    found = scores.squad([golds], [text])
    assert found['exact_match'] == 100 * exact, text
    assert found['f1'] == pytest.approx(100 * shared), text
  # And averaged over questions.
  golds, given, exact, shared = zip(*SQUAD, strict=True)
  found = scores.squad(golds, given)
  assert found['exact_match'] == pytest.approx(100 * np.mean(exact))
  assert found['f1'] == pytest.approx(100 * np.mean(shared))


WORDS = st.text(st.sampled_from("aAtheEnxy.,'-! \n"), max_size=14)


@hypothesis.given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_answers_step_by_step(text, golds):
  """The script's steps in words: lower, no punctuation, no articles, words."""

  def words(answer):
    kept = [x for x in answer.lower() if x not in string.punctuation]
    parts = re.split(r'(\W+)', ''.join(kept))
    return [x for x in parts if x.strip() and x not in ('a', 'an', 'the')]

  best = 0.0
  for gold in golds:
    left, same = list(words(text)), 0
    for word in words(gold):
      if word in left:
        left.remove(word)
        same += 1
    if same:
      precision, recall = same / len(words(text)), same / len(words(gold))
      best = max(best, 2 * precision * recall / (precision + recall))
  found = scores.squad([golds], [text])
  assert found['f1'] == pytest.approx(100 * best)
  exact = any(words(gold) == words(text) for gold in golds)
  assert found['exact_match'] == 100 * exact


def test_multirc_by_option_and_by_question():
  def option(group, value):
    return {'group': group, 'value': value}

  targets = [
    option('0/0', 'True'),
    option('0/0', 'False'),
    option('0/1', 'True'),
    option('0/1', 'True'),
    option('1/0', 'False'),
  ]
  predictions = ['True', 'False', 'True', 'False', 'nonsense']
  found = scores.multirc(targets, predictions)
  # 'True': 2 found, 1 missed, and nonsense counts as found wrongly.
  assert found['f1a'] == pytest.approx(100 * 4 / 6)
  assert found['exact_match'] == pytest.approx(100 / 3)
  assert scores.multirc(targets, [x['value'] for x in targets]) == {
    'f1a': 100.0,
    'exact_match': 100.0,
  }


# Longer texts.


def test_bleu():
  reference = 'the quick brown fox jumps over the lazy dog .'
  assert scores.bleu([reference], [reference])['bleu'] == pytest.approx(100)
  assert scores.bleu([reference], [''])['bleu'] == 0.0
  # Of the n-grams 4 of 5, 2 of 4, 0 of 3 and 0 of 2 are right; the first 0
  # counts as 1/2, the next as 1/4 of one.
  text = 'the quick red fox jumps'
  found = scores.bleu(['the quick brown fox jumps'], [text])['bleu']
  wanted = (4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** (1 / 4)
  assert found == pytest.approx(100 * wanted)
  # Several references, not as many for each.
  golds = [['no', text], [reference]]
  assert scores.bleu(golds, [text, reference])['bleu'] == pytest.approx(100)


def test_rouge():
  found = scores.rouge(['the cat sat'], ['the cat'])
  assert found['rouge1'] == pytest.approx(100 * 4 / 5)
  assert found['rouge2'] == pytest.approx(100 * 2 / 3)
  assert found['rougeLsum'] == pytest.approx(100 * 4 / 5)
  assert scores.rouge(['cats'], ['cat'])['rouge1'] == 0
  assert scores.rouge(['cats'], ['cat'], use_stemmer=True)['rouge1'] == 100
  assert set(scores.rouge(['a'], ['']).values()) == {0.0}


# What cannot be scored.

METRICS = [
  scores.accuracy,
  lambda *given: scores.f1(*given, positive=YES, negative=NO),
  lambda *given: scores.macro_f1(*given, labels=[YES, NO]),
  scores.matthews,
  scores.pearson,
  scores.spearman,
  scores.squad,
  scores.multirc,
  scores.bleu,
  scores.rouge,
]


@pytest.mark.parametrize('metric', METRICS)
def test_lists_of_other_lengths_are_refused(metric):
  with pytest.raises(errors.UserError, match='3 predictions for 2 targets'):
    metric([YES, NO], [YES, NO, NO])
  with pytest.raises(errors.UserError, match='nothing to score'):
    metric([], [])


def test_targets_that_cannot_be(recwarn):
  with pytest.raises(errors.UserError, match=r"'maybe'.*'yes', 'no'"):
    f1(['maybe'], [YES])
  with pytest.raises(errors.UserError, match="'maybe'"):
    scores.macro_f1(['maybe'], [YES], labels=[YES, NO])
  for golds in ('yes', []):
    with pytest.raises(errors.UserError, match='a list of one answer'):
      scores.squad([golds], ['yes'])
  with pytest.raises(errors.UserError, match='no reference'):
    scores.bleu([[]], ['yes'])
  assert not [w for w in recwarn if issubclass(w.category, Warning)]
