"""Metrics of generated text, in per cent as the papers' tables have them.

Each is a function of (targets, predictions), two lists of one length, and
returns {name: number}: what seqio calls a predict metric, so that a gin file
can put it on any task, by name or, to set its parameters, as a function:

  tasks.text_to_text.metric_fns = ['accuracy', @scores.rouge]
  scores.rouge.use_stemmer = True

Targets and predictions are what a task's `postprocess_fn` returned. The
numbers lie between 0 and 100, correlations between -100 and 100.

What a model writes need not be an answer at all. Such a prediction is wrong:
  accuracy        it equals no target
  f1              it counts as the label that is not the target's
  macro_f1        it is missed for its target's class and found for none
  matthews        a class of its own, so that nonsense alone scores 0
  pearson, spearman   it counts as the number -1, below every similarity
A correlation or F1 that is 0 / 0 (one class only, all predictions equal) is 0.

The libraries are imported where they are used: a gin file that names a metric
should not wait for them.
"""

import collections
import functools
import math
import re
import string

import numpy as np

from t5x_variants import errors

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
# Of STS-B, whose similarities are 0 to 5.
_NO_NUMBER = -1.0


def get(name: str, labels=None):
  """The metric of a name.

  Args:
    name: accuracy, f1, macro_f1, matthews, pearson, spearman, bleu or rouge.
    labels: of the task; f1 needs two, of which the second is the positive one,
      macro_f1 needs all.

  Returns:
    A function of (targets, predictions).

  Raises:
    errors.UserError: an unknown name, or labels that are missing.
  """
  known = (accuracy, matthews, pearson, spearman, bleu, rouge, f1, macro_f1)
  named = {function.__name__: function for function in known}
  if name not in named:
    raise errors.UserError(
      f'There is no metric {name!r}: choose from {sorted(named)}.'
    )
  count = len(labels or ())
  if (name == 'f1' and count != 2) or (name == 'macro_f1' and not count):
    wanted = 'two labels' if name == 'f1' else 'labels'
    raise errors.UserError(
      f'The metric {name!r} needs {wanted}, not {labels!r}.'
    )
  if name == 'f1':
    return functools.partial(f1, positive=labels[1], negative=labels[0])
  if name == 'macro_f1':
    return functools.partial(macro_f1, labels=tuple(labels))
  return named[name]


def check_lengths(targets, predictions) -> None:
  """Refuses lists that cannot be compared one by one."""
  if len(targets) != len(predictions):
    raise errors.UserError(
      f'There are {len(predictions)} predictions for {len(targets)} targets:'
      ' give one for each, in the same order.'
    )
  if not len(targets):
    raise errors.UserError(
      'There are no targets and no predictions, so there is nothing to score.'
    )


def accuracy(targets, predictions) -> dict[str, float]:
  """Share of predictions that equal their target."""
  import sklearn.metrics

  check_lengths(targets, predictions)
  found = sklearn.metrics.accuracy_score(list(targets), list(predictions))
  return {'accuracy': 100 * float(found)}


def f1(
  targets, predictions, *, positive: str, negative: str
) -> dict[str, float]:
  """F1 of one of two labels.

  Args:
    targets: labels, each one of the two.
    predictions: text.
    positive: the label whose precision and recall are meant.
    negative: the other one.

  Returns:
    `f1`.
  """
  import sklearn.metrics

  check_lengths(targets, predictions)
  _check_labels(targets, [positive, negative])
  wanted = [target == positive for target in targets]
  found = [
    text == positive if text in (positive, negative) else not target
    for target, text in zip(wanted, predictions, strict=True)
  ]
  value = sklearn.metrics.f1_score(wanted, found, zero_division=0)
  return {'f1': 100 * float(value)}


def macro_f1(targets, predictions, *, labels) -> dict[str, float]:
  """Unweighted mean of the F1 of each label, also of labels that are absent.

  Args:
    targets: labels.
    predictions: text.
    labels: all of them.

  Returns:
    `f1`.
  """
  import sklearn.metrics

  check_lengths(targets, predictions)
  _check_labels(targets, labels)
  value = sklearn.metrics.f1_score(
    list(targets),
    list(predictions),
    labels=list(labels),
    average='macro',
    zero_division=0,
  )
  return {'f1': 100 * float(value)}


def matthews(targets, predictions) -> dict[str, float]:
  """Matthews' correlation coefficient of labels."""
  import sklearn.metrics

  check_lengths(targets, predictions)
  if len({*targets, *predictions}) < 2:
    return {'matthews': 0.0}
  value = sklearn.metrics.matthews_corrcoef(list(targets), list(predictions))
  return {'matthews': 100 * float(value)}


def pearson(targets, predictions) -> dict[str, float]:
  """Pearson's correlation of numbers; both may be text."""
  import scipy.stats

  return {'pearson': _correlation(scipy.stats.pearsonr, targets, predictions)}


def spearman(targets, predictions) -> dict[str, float]:
  """Spearman's rank correlation of numbers; ties share their mean rank."""
  import scipy.stats

  return {'spearman': _correlation(scipy.stats.spearmanr, targets, predictions)}


def normalized(answer: str) -> str:
  """An answer as SQuAD's script compares it.

  Lower case, ASCII punctuation deleted, then the words a, an and the, then
  white space made single.
  """
  answer = answer.lower().translate(_NO_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', answer).split())


def squad(targets, predictions) -> dict[str, float]:
  """Exact match and word F1, each the best over a question's gold answers.

  As SQuAD's evaluation script v1.1 has it, and ReCoRD's: F1 is that of the
  multisets of words after `normalized`, and 0 where no word is shared.

  Args:
    targets: the gold answers of each question, a list of str.
    predictions: text.

  Returns:
    `exact_match` and `f1`.
  """
  check_lengths(targets, predictions)
  exact, shared = [], []
  for golds, text in zip(targets, predictions, strict=True):
    if isinstance(golds, str) or not len(golds):
      raise errors.UserError(
        f'A target of squad is {golds!r}; give a list of one answer or more.'
      )
    text = normalized(text)
    golds = [normalized(gold) for gold in golds]
    exact.append(any(gold == text for gold in golds))
    shared.append(max(_word_f1(gold, text) for gold in golds))
  return {
    'exact_match': 100 * float(np.mean(exact)),
    'f1': 100 * float(np.mean(shared)),
  }


def multirc(targets, predictions) -> dict[str, float]:
  """F1 over all answer options, and questions answered wholly right.

  Args:
    targets: {'group': of the question, 'value': 'True' or 'False'}, one for
      each answer option.
    predictions: text.

  Returns:
    `f1a`, that of 'True'; `exact_match`, the share of groups all of whose
    options are predicted right.
  """
  check_lengths(targets, predictions)
  values = [target['value'] for target in targets]
  right: dict = collections.defaultdict(lambda: True)
  for target, text in zip(targets, predictions, strict=True):
    group = target['group']
    group = tuple(group) if isinstance(group, list) else group
    right[group] &= target['value'] == text
  found = f1(values, predictions, positive='True', negative='False')['f1']
  exact = float(np.mean(list(right.values())))
  return {'f1a': found, 'exact_match': 100 * exact}


def bleu(targets, predictions) -> dict[str, float]:
  """BLEU of a corpus, by sacreBLEU with its default tokenizer (13a).

  Args:
    targets: a str each, or a list of references.
    predictions: text.

  Returns:
    `bleu`.
  """
  import sacrebleu

  check_lengths(targets, predictions)
  golds = [[x] if isinstance(x, str) else list(x) for x in targets]
  if not all(golds):
    raise errors.UserError(
      'A target of bleu has no reference: give one or more each.'
    )
  # The i-th references of all; sacreBLEU leaves out a None.
  most = max(map(len, golds))
  streams: list = [
    [gold[i] if i < len(gold) else None for gold in golds] for i in range(most)
  ]
  return {'bleu': sacrebleu.corpus_bleu(list(predictions), streams).score}


def rouge(targets, predictions, use_stemmer: bool = False) -> dict[str, float]:
  """ROUGE-1, ROUGE-2 and ROUGE-L of summaries: the mean F-measure.

  Args:
    targets: a str each, a sentence a line for `rougeLsum`.
    predictions: text.
    use_stemmer: whether words are compared by Porter's stems.

  Returns:
    `rouge1`, `rouge2`, `rougeLsum`.
  """
  from rouge_score import rouge_scorer

  check_lengths(targets, predictions)
  names = ['rouge1', 'rouge2', 'rougeLsum']
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=use_stemmer)
  found = [
    scorer.score(target, text)
    for target, text in zip(targets, predictions, strict=True)
  ]
  return {
    name: 100 * float(np.mean([each[name].fmeasure for each in found]))
    for name in names
  }


def _check_labels(targets, labels) -> None:
  if outside := sorted(set(targets) - set(labels)):
    raise errors.UserError(
      f'A target is {outside[0]!r}; the labels of the task are {list(labels)}.'
    )


def _word_f1(gold: str, text: str) -> float:
  wanted, words = gold.split(), text.split()
  same = collections.Counter(wanted) & collections.Counter(words)
  return 2 * same.total() / (len(wanted) + len(words)) if same else 0.0


def _number(value) -> float:
  try:
    found = float(value)
  except ValueError:
    return _NO_NUMBER
  return found if math.isfinite(found) else _NO_NUMBER


def _correlation(measure, targets, predictions) -> float:
  check_lengths(targets, predictions)
  targets, predictions = (
    np.array([_number(value) for value in values])
    for values in (targets, predictions)
  )
  if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
    return 0.0
  return 100 * float(measure(targets, predictions)[0])
