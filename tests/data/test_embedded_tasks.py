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


@pytest.fixture(scope='module')
def made(library):
  """The labelled sentences, and what functions return."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(embedded, 'docstrings', lambda: iter(library))
    return embedded_tasks.labelled_sentences(), embedded_tasks.returned()


def squeezed(text):
  return ' '.join(text.split())


def test_sentences_are_balanced_and_of_their_package(library, made):
  found, _ = made
  assert len(found['train']) >= 400
  assert 200 <= len(found['validation']) <= embedded_tasks.TEST_EXAMPLES
  text = collections.defaultdict(str)
  for module, _, docstring in library:
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
  # No sentence and no docstring is in both splits.
  train, test = ({s for s, _ in found[split]} for split in found)
  assert len(train) == len(found['train']) and not train & test
  # Where a sentence stands in several docstrings, the first counts.
  home = {}
  for module, _, docstring in library:
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


def test_answers_are_spans_and_splits_are_disjoint(library, made):
  _, found = made
  assert len(found['train']) >= 300
  assert 200 <= len(found['validation']) <= embedded_tasks.TEST_EXAMPLES
  known = {
    (module, name): text for module, name, text in library if 'eturn' in text
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


def test_the_files_are_the_same_each_time(library, made, monkeypatch, tmp_path):
  monkeypatch.setattr(embedded, 'docstrings', lambda: iter(library))

  def texts(folder):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / folder))
    files = [
      embedded_tasks.sentences(split) for split in ('train', 'validation')
    ]
    squad = pathlib.Path(embedded_tasks.questions())
    files += [squad / 'train-v1.1.json', squad / 'dev-v1.1.json']
    return [pathlib.Path(file).read_text(encoding='utf-8') for file in files]

  first = texts('a')
  assert texts('b') == first
  for name in ('labelled_sentences', 'returned'):
    monkeypatch.setattr(
      embedded_tasks, name, lambda: pytest.fail('built again')
    )
  assert texts('a') == first
  assert set(json.loads(first[0].splitlines()[0])) == {'inputs', 'targets'}
  # SQuAD's JSON: the answers are where it says.
  ids = []
  for article in json.loads(first[-1])['data']:
    for paragraph in article['paragraphs']:
      for question in paragraph['qas']:
        ids.append(question['id'])
        for answer in question['answers']:
          context = paragraph['context'][answer['answer_start'] :]
          assert context.startswith(answer['text'])
  assert len(set(ids)) == len(ids) == len(made[1]['validation'])


def test_bad_input_is_said(monkeypatch):
  with pytest.raises(errors.UserError, match="split is 'test'"):
    embedded_tasks.sentences('test')
  monkeypatch.setattr(embedded, 'docstrings', lambda: iter(()))
  for make in (embedded_tasks.labelled_sentences, embedded_tasks.returned):
    with pytest.raises(errors.UserError, match='no library sources'):
      make()
