"""GLUE as text: eight tasks, in the official TSV files or in TFDS.

A single sentence or a pair becomes one line, the task's name and each field's
name before its text; the label becomes a word (Raffel et al., JMLR 2020,
section 2.4 and appendix D). STS-B's similarity, a number from 0 to 5, becomes
the text of its nearest multiple of 0.2; metrics compare the unrounded one.
WNLI is left out, as in the papers. MNLI is two tasks: `mnli_matched`, which
has the training set, and `mnli_mismatched`, a development set alone.

Files: CoLA/train.tsv, CoLA/dev.tsv and so on, the layout of GLUE's own zip
files. Test sets have no labels and are not read.

References:
  Wang et al. 2019, GLUE (arXiv:1804.07461)
"""

import functools
import json
import math

import numpy as np

from t5x_variants import errors
from t5x_variants.data.benchmarks import recipes
from t5x_variants.data.tasks import metrics as scores

_TFDS_VERSION = '2.0.0'
_THREE = ('entailment', 'neutral', 'contradiction')
_TWO = ('entailment', 'not_entailment')


def _files(folder: str, train: str = 'train', dev: str = 'dev'):
  found = {'train': train, 'validation': dev}
  return {
    split: f'{folder}/{name}.tsv' for split, name in found.items() if name
  }


def _recipe(
  name, folder, size, columns, names, labels, metric_fns, coded=True, **options
):
  return recipes.Recipe(
    files=options.pop('files', _files(folder)),
    read=functools.partial(recipes.tsv_rows, columns=columns),
    tfds=f'glue/{name}:{_TFDS_VERSION}',
    convert=functools.partial(
      recipes.fields_to_text,
      prompt=name,
      names=names,
      labels=labels,
      coded=coded,
    ),
    metric_fns=metric_fns,
    size=size,
    **options,
  )


def _named(*names, label='label') -> dict[str, str]:
  return {name: name for name in names} | {'label': label}


def _f1(labels):
  # Of a pair that means the same.
  return functools.partial(scores.f1, positive=labels[1], negative=labels[0])


def similarity_to_text(row, split: str) -> list[dict]:
  """A pair of STS-B: the target is its similarity to the nearest 0.2."""
  del split
  try:
    value = float(row['label'])
  except ValueError:
    value = math.nan
  if not 0 <= value <= 5:
    raise errors.UserError(
      f'The label is {row["label"]!r}; it must be a number from 0 to 5.'
    )
  # In float32, as TFDS stores it: halves are rounded alike in both formats.
  rounded = np.round(np.float32(value) * np.float32(5)) / 5
  return [
    {
      'inputs': (
        f'stsb sentence1: {row["sentence1"]} sentence2: {row["sentence2"]}'
      ),
      'targets': f'{rounded:.1f}',
      'gold': json.dumps(round(value, 4)),
    }
  ]


def _mnli(section: str, size: int, train: str = '', **files: str):
  return _recipe(
    'mnli',
    'MNLI',
    size,
    {
      'premise': 'sentence1',
      'hypothesis': 'sentence2',
      'label': 'gold_label',
    },
    ['hypothesis', 'premise'],
    _THREE,
    (scores.accuracy,),
    coded=False,
    files=_files('MNLI', train, f'dev_{section}') | files,
    tfds_splits={'validation': f'validation_{section}'},
  )


_PAIR = ['sentence1', 'sentence2']
_PARAPHRASE = ('not_equivalent', 'equivalent')
_DUPLICATE = ('not_duplicate', 'duplicate')

RECIPES = {
  'cola': _recipe(
    'cola',
    'CoLA',
    8_551,
    {'sentence': 3, 'label': 1},
    ['sentence'],
    ('unacceptable', 'acceptable'),
    (scores.matthews,),
  ),
  'sst2': _recipe(
    'sst2',
    'SST-2',
    67_349,
    _named('sentence'),
    ['sentence'],
    ('negative', 'positive'),
    (scores.accuracy,),
  ),
  'mrpc': _recipe(
    'mrpc',
    'MRPC',
    3_668,
    {
      'sentence1': '#1 String',
      'sentence2': '#2 String',
      'label': 'Quality',
    },
    _PAIR,
    _PARAPHRASE,
    (_f1(_PARAPHRASE), scores.accuracy),
  ),
  'stsb': recipes.Recipe(
    files=_files('STS-B'),
    read=functools.partial(
      recipes.tsv_rows, columns=_named(*_PAIR, label='score')
    ),
    tfds=f'glue/stsb:{_TFDS_VERSION}',
    convert=similarity_to_text,
    metric_fns=(scores.pearson, scores.spearman),
    size=5_749,
    postprocess_fn=recipes.gold,
  ),
  'qqp': _recipe(
    'qqp',
    'QQP',
    363_849,
    _named('question1', 'question2', label='is_duplicate'),
    ['question1', 'question2'],
    _DUPLICATE,
    (_f1(_DUPLICATE), scores.accuracy),
  ),
  # With the other development set, for protocols that test on both at once.
  'mnli_matched': _mnli(
    'matched',
    392_702,
    'train',
    validation_mismatched='MNLI/dev_mismatched.tsv',
  ),
  # Not trained on: its rate is that of its development set.
  'mnli_mismatched': _mnli('mismatched', 9_832),
  'qnli': _recipe(
    'qnli',
    'QNLI',
    104_743,
    _named('question', 'sentence'),
    ['question', 'sentence'],
    _TWO,
    (scores.accuracy,),
    coded=False,
  ),
  'rte': _recipe(
    'rte',
    'RTE',
    2_490,
    _named(*_PAIR),
    _PAIR,
    _TWO,
    (scores.accuracy,),
    coded=False,
  ),
}
