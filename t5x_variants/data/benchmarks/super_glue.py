r"""SuperGLUE as text: eight tasks, in the official JSONL files or in TFDS.

As for GLUE a row becomes one line and its label a word (Raffel et al., JMLR
2020, section 2.4 and appendix D), but for four tasks:

  MultiRC   an example for each answer option, 'True' or 'False'; the tags
            <b>, </b> and <br> of paragraphs are taken out
  ReCoRD    '\n@highlight\n' between sentences becomes a full stop and a
            space; training has an example for each of a query's answers, the
            development set one for each query, compared with all of them
  WSC       the pronoun stands between asterisks and the target is the noun
            phrase that it means. Only true pairs are trained on. A prediction
            says 'True' where its words and the candidate's, without case and
            determiners, contain each other, and only one with an apostrophe
            is never the same as one without; an empty one says nothing
  WiC       'pos: N' first, where the row has it (SuperGLUE 2.0 has none)

Files: BoolQ/train.jsonl, BoolQ/val.jsonl and so on, of version 2.0. Test sets
have no labels and are not read.

References:
  Wang et al. 2019, SuperGLUE (arXiv:1905.00537)
"""

import functools
import json
import re

from t5x_variants import errors
from t5x_variants.data.benchmarks import recipes
from t5x_variants.data.tasks import metrics as scores

_TFDS_VERSION = '1.0.2'
_TRUTH = ('False', 'True')
_TWO = ('entailment', 'not_entailment')
_BANK = ('entailment', 'contradiction', 'neutral')
_DETERMINERS = frozenset(
  'a an few her his each every many much my our some that the their these this'
  ' those which whose your'.split()
)
_AFTER_SENTENCE = re.compile('([.?!"\'])\n@highlight\n')


def _recipe(name, folder, size, convert, metric_fns, **options):
  return recipes.Recipe(
    files={
      'train': f'{folder}/train.jsonl',
      'validation': f'{folder}/val.jsonl',
    },
    read=options.pop('read', recipes.json_rows),
    tfds=f'super_glue/{options.pop("config", name)}:{_TFDS_VERSION}',
    convert=convert,
    metric_fns=metric_fns,
    size=size,
    **options,
  )


def _fields(name, folder, size, names, labels, metric_fns, coded=False):
  convert = functools.partial(
    recipes.fields_to_text,
    prompt=name,
    names=names,
    labels=labels,
    coded=coded,
  )
  return _recipe(name, folder, size, convert, metric_fns)


def multirc_rows(path: str):
  """Yields (place, row as TFDS has it) for every answer option of a file."""
  for line, passage in recipes.json_rows(path):
    try:
      paragraph = passage['passage']
      for question in paragraph['questions']:
        for answer in question['answers']:
          index = {
            'paragraph': passage['idx'],
            'question': question['idx'],
            'answer': answer['idx'],
          }
          yield (
            f'line {line}, answer {answer["idx"]}',
            {
              'paragraph': paragraph['text'],
              'question': question['question'],
              'answer': answer['text'],
              'label': answer['label'],
              'idx': index,
            },
          )
    except (KeyError, TypeError) as error:
      raise errors.UserError(
        f'In {path}, line {line}: no passage of MultiRC: {error!r}.'
      ) from error


def multirc_to_text(row, split: str) -> list[dict]:
  """An answer option: is it right?"""
  (example,) = recipes.fields_to_text(
    row,
    split,
    prompt='multirc',
    names=['question', 'answer', 'paragraph'],
    labels=_TRUTH,
    coded=True,
  )
  text = re.sub('</?b>', '', example['inputs'].replace('<br>', ' '))
  group = f'{row["idx"]["paragraph"]}/{row["idx"]["question"]}'
  gold = {'group': group, 'value': example['targets']}
  return [example | {'inputs': text, 'gold': json.dumps(gold)}]


def record_rows(path: str):
  """Yields (place, row as TFDS has it) for every query of a file."""
  for line, entry in recipes.json_rows(path):
    try:
      text = entry['passage']['text']
      entities = {
        # The last character belongs to it.
        text[entity['start'] : entity['end'] + 1]
        for entity in entry['passage']['entities']
      }
      for query in entry['qas']:
        yield (
          f'line {line}, query {query["idx"]}',
          {
            'passage': text,
            'query': query['query'],
            'entities': sorted(entities),
            'answers': sorted({answer['text'] for answer in query['answers']}),
          },
        )
    except (KeyError, TypeError) as error:
      raise errors.UserError(
        f'In {path}, line {line}: no passage of ReCoRD: {error!r}.'
      ) from error


def record_to_text(row, split: str) -> list[dict]:
  """A query: which entity is the @placeholder?"""
  passage = _AFTER_SENTENCE.sub(r'\1 ', row['passage'])
  passage = passage.replace('\n@highlight\n', '. ')
  if not row['answers']:
    raise errors.UserError('The query has no answer.')
  inputs = (
    f'record query: {row["query"]} entities: {", ".join(row["entities"])}'
    f' passage: {passage}'
  )
  answers = row['answers'] if split == 'train' else row['answers'][:1]
  gold = json.dumps(row['answers'])
  return [
    {'inputs': inputs, 'targets': answer, 'gold': gold} for answer in answers
  ]


def marked(text: str, pronoun: str, index: int) -> str:
  """A text with one pronoun between asterisks.

  Args:
    text: of a WSC row.
    pronoun: its span2_text.
    index: which word, counted from 0; where the pronoun is not in that one,
      as in a few rows, the nearest that has it is meant.

  Returns:
    The text; white space stays as it is.
  """
  words = list(re.finditer(r'\S+', text))
  wanted = re.compile(rf'\b{re.escape(pronoun.strip())}\b', re.IGNORECASE)
  places = sorted(range(len(words)), key=lambda place: abs(place - index))
  for place in places:
    start, end = words[place].span()
    # A pronoun of several words begins here.
    found = wanted.search(text, start, max(end, start + len(pronoun)))
    if found:
      start, end = found.span()
      return f'{text[:start]}*{text[start:end]}*{text[end:]}'
  raise errors.UserError(
    f'The pronoun {pronoun!r} is not in the text {text!r}.'
  )


def wsc_rows(path: str):
  """Yields (line, row as TFDS has it) of a file."""
  for line, row in recipes.json_rows(path):
    yield line, row | (row.get('target') or {})


def wsc_to_text(row, split: str) -> list[dict]:
  """What does the pronoun mean?"""
  label = recipes.label_text(row['label'], _TRUTH)
  if split == 'train' and label == 'False':
    return []
  text = marked(row['text'], row['span2_text'], row['span2_index'])
  return [
    {
      'inputs': f'wsc: {text}',
      'targets': row['span1_text'],
      'gold': json.dumps(label),
    }
  ]


def _content(text: str) -> str:
  words = text.strip().lower().split(' ')
  return ' '.join(word for word in words if word not in _DETERMINERS)


def same_referent(text, *, example=None, is_target: bool = False) -> str:
  """WSC's postprocess_fn: does the prediction name the candidate?

  Args:
    text: of the prediction.
    example: has the candidate, `targets_pretokenized`.
    is_target: whether the label is asked for instead.

  Returns:
    'True' or 'False'; '' for an empty prediction, which is never right.
  """
  if is_target:
    return recipes.gold(text, example=example, is_target=True)
  candidate = example['targets_pretokenized']
  if isinstance(candidate, bytes):
    candidate = candidate.decode('utf-8')
  found, candidate = _content(text), _content(candidate)
  if not found:
    return ''
  if ("'" in found) != ("'" in candidate):
    return 'False'
  words, wanted = set(found.split(' ')), set(candidate.split(' '))
  return str(words <= wanted or wanted <= words)


_MACRO = functools.partial(scores.macro_f1, labels=_BANK)
_ACCURACY = (scores.accuracy,)
_STATEMENTS = ['hypothesis', 'premise']
_CHOICES = ['choice1', 'choice2', 'premise', 'question']
_SENSES = ['pos?', 'sentence1', 'sentence2', 'word']

RECIPES = {
  'boolq': _fields(
    'boolq', 'BoolQ', 9_427, ['passage', 'question'], _TRUTH, _ACCURACY
  ),
  'cb': _fields('cb', 'CB', 250, _STATEMENTS, _BANK, (_MACRO, *_ACCURACY)),
  'copa': _fields(
    'copa', 'COPA', 400, _CHOICES, ('choice1', 'choice2'), _ACCURACY, True
  ),
  'multirc': _recipe(
    'multirc',
    'MultiRC',
    27_243,
    multirc_to_text,
    (scores.multirc,),
    read=multirc_rows,
    postprocess_fn=recipes.gold,
  ),
  'record': _recipe(
    'record',
    'ReCoRD',
    138_854,
    record_to_text,
    (scores.squad,),
    read=record_rows,
    postprocess_fn=recipes.gold,
  ),
  'rte': _fields('rte', 'RTE', 2_490, _STATEMENTS, _TWO, _ACCURACY),
  'wic': _fields('wic', 'WiC', 5_428, _SENSES, _TRUTH, _ACCURACY),
  'wsc': _recipe(
    'wsc',
    'WSC',
    259,
    wsc_to_text,
    _ACCURACY,
    config='wsc.fixed',
    read=wsc_rows,
    postprocess_fn=same_referent,
  ),
}
