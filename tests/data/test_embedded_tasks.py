"""The labelled sets made of Python's own text are what their rule says."""

import collections
import json
import pathlib

import pytest

from t5x_variants import errors
from t5x_variants.data.text import embedded, embedded_tasks


@pytest.fixture(scope='module')
def library():
  """All docstrings; walking through the library takes seconds."""
  return list(embedded.docstrings())


@pytest.fixture
def walked(library, monkeypatch, tmp_path):
  """The library without the walk, and a cache folder of its own."""
  monkeypatch.setattr(embedded, 'docstrings', lambda: iter(library))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  return library


def squeezed(text):
  return ' '.join(text.split())


def test_sentences_are_balanced_and_of_their_package(walked):
  found = embedded_tasks.labelled_sentences()
  assert len(found['train']) >= 400
  assert 200 <= len(found['validation']) <= embedded_tasks.TEST_EXAMPLES
  text = collections.defaultdict(str)
  for module, _, docstring in walked:
    text[module.partition('.')[0]] += '\n' + squeezed(docstring)
  for examples in found.values():
    labels = collections.Counter(label for _, label in examples)
    assert len(set(labels.values())) == 1 and set(labels) == {
      'asyncio',
      'importlib',
    }
    for sentence, label in examples:
      assert sentence in text[label]
      assert 30 <= len(sentence) <= 160 and sentence.endswith('.')
      assert not any(name in sentence.lower() for name in labels)
    # Not all of one label, then all of the other.
    half = [label for _, label in examples[: len(examples) // 2]]
    assert 0.35 < half.count('importlib') / len(half) < 0.65


def test_no_sentence_and_no_docstring_is_in_both_splits(walked):
  found = embedded_tasks.labelled_sentences()
  train, test = ({s for s, _ in found[split]} for split in found)
  assert len(train) == len(found['train']) and not train & test
  # Where a sentence stands in several docstrings, the first counts.
  home = {}
  for module, _, docstring in walked:
    if module.partition('.')[0] in embedded_tasks.LABELS:
      for sentence in embedded_tasks._sentences(docstring):
        home.setdefault(sentence, docstring)
  assert not {home[s] for s in train} & {home[s] for s in test}


def test_a_sentence_of_both_packages_is_in_neither(monkeypatch):
  both = 'Return a copy of the header. It is also said somewhere else here.'
  rest = [
    f'{word} words make a sentence of one package {word}.'
    for word in 'Many Some Few More Good Bad Long Short New Old'.split()
  ]
  monkeypatch.setattr(embedded_tasks, 'HELD_OUT', 0.5)
  monkeypatch.setattr(
    embedded,
    'docstrings',
    lambda: iter(
      [
        ('importlib.abc', 'f', both),
        ('asyncio', 'g', 'It is also said somewhere else here.'),
        *(('importlib', 'f', text) for text in rest),
        *(('asyncio', 'g', text.replace('one', 'this')) for text in rest),
      ]
    ),
  )
  found = [
    sentence
    for examples in embedded_tasks.labelled_sentences().values()
    for sentence, _ in examples
  ]
  assert found and not [s for s in found if 'also said' in s]


def test_answers_are_spans_and_splits_are_disjoint(walked):
  found = embedded_tasks.returned()
  assert len(found['train']) >= 300
  assert 200 <= len(found['validation']) <= embedded_tasks.TEST_EXAMPLES
  known = {
    (module, name): text for module, name, text in walked if 'eturn' in text
  }
  for examples in found.values():
    for module, name, context, start, answer in examples:
      assert context[start : start + len(answer)] == answer
      assert context[:start].endswith(('Return ', 'Returns '))
      assert 3 <= len(answer) <= 40 and 40 <= len(context) <= 140
      assert not name.startswith('_') and (module, name) in known
  contexts = [{e[2] for e in found[split]} for split in found]
  assert not contexts[0] & contexts[1]


@pytest.mark.parametrize(
  ('docstring', 'answer'),
  [
    ('Return the name of the file, or None if there is none.', 'the name of'),
    ('Look it up at once and for all. Returns a copy.', 'a copy'),
    ('Return True if it is so, False if it is not at all.', 'True'),
    ('Return os.sep of the system that this program runs on.', 'os.sep of'),
    ('Return it. Return it again, so that there are two of them.', None),
    ('The return value is what is returned to the one who calls.', None),
    ('Return x of y.', None),
  ],
)
def test_what_is_asked_for(monkeypatch, docstring, answer):
  monkeypatch.setattr(embedded_tasks, '_check_enough', lambda count: None)
  monkeypatch.setattr(embedded, 'docstrings', lambda: [('m', 'f', docstring)])
  found = [e for split in embedded_tasks.returned().values() for e in split]
  if answer is None:
    assert not found
  else:
    assert found[0][4].startswith(answer)


def test_the_files_are_the_same_each_time(walked, monkeypatch, tmp_path):
  def texts(folder):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / folder))
    files = [
      embedded_tasks.sentences(split) for split in ('train', 'validation')
    ]
    squad = pathlib.Path(embedded_tasks.questions())
    files += [squad / 'train-v1.1.json', squad / 'dev-v1.1.json']
    return [pathlib.Path(file).read_text(encoding='utf-8') for file in files]

  first = texts('a')
  monkeypatch.setattr(
    embedded_tasks, 'labelled_sentences', lambda: pytest.fail('built again')
  )
  assert texts('a') == first
  monkeypatch.undo()
  monkeypatch.setattr(embedded, 'docstrings', lambda: iter(walked))
  assert texts('b') == first
  assert set(json.loads(first[0].splitlines()[0])) == {'inputs', 'targets'}


def test_the_questions_are_squad_s_json(walked):
  folder = pathlib.Path(embedded_tasks.questions())
  found = json.loads((folder / 'dev-v1.1.json').read_text(encoding='utf-8'))
  ids = []
  for article in found['data']:
    for paragraph in article['paragraphs']:
      for question in paragraph['qas']:
        ids.append(question['id'])
        for answer in question['answers']:
          start = answer['answer_start']
          context = paragraph['context']
          assert context[start:].startswith(answer['text'])
  assert (
    len(set(ids)) == len(ids) == len(embedded_tasks.returned()['validation'])
  )


def test_bad_input_is_said(monkeypatch):
  with pytest.raises(errors.UserError, match="split is 'test'"):
    embedded_tasks.sentences('test')
  monkeypatch.setattr(embedded, 'docstrings', lambda: iter(()))
  with pytest.raises(errors.UserError, match='no library sources'):
    embedded_tasks.labelled_sentences()
  with pytest.raises(errors.UserError, match='no library sources'):
    embedded_tasks.returned()
