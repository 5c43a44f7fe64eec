"""Labelled sets made of the embedded corpus by rule; nothing is downloaded.

Two tasks on the docstrings of the running Python's own library, for trying
fine-tuning out and for comparing variants at toy scale. What they measure is
small: a table of them says nothing about GLUE or SQuAD.

Sentences: is this sentence from `asyncio` or from `importlib`? A document is a
docstring of one of the two packages. Its paragraphs without a doctest are cut
into sentences after `.`, `!` or `?` before a capital. Kept are those of 30 to
160 characters that begin with a capitalised word, end in a full stop, are
nearly all letters, and do not name either package. The label is the package.

Questions: what does this function return? A document is a public function's
docstring, its first paragraph the context: 40 to 140 ASCII characters with
one sentence that begins with Return or Returns. The question names the
function; the answer is what follows that word, up to punctuation or to a
conjunction or preposition, so it is a span of the context. Files are SQuAD's
JSON (Rajpurkar et al. 2016, arXiv:1606.05250).

Documents are put into 'train' or 'validation' by a hash of their text, so that
no document is in both. A text that occurs twice counts where it occurs first;
a sentence of both packages is left out. Each split has as many sentences of
one label as of the other. The order is that of a hash as well.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from t5x_variants import errors
from t5x_variants.data.text import documents, embedded

# Raise it when the rules change: other examples, other cache files.
VERSION = 1
LABELS = ('asyncio', 'importlib')
SPLITS = ('train', 'validation')
# The share of documents held out, and the most examples of it.
HELD_OUT = 0.4
TEST_EXAMPLES = 300
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+(?=[A-Z])')
_BLANK_LINE = re.compile(r'\n\s*\n')
_PROSE = re.compile(r"[A-Za-z ,.'-]")
_BEGINS = re.compile(r'(?:^|[.] )Returns? ')
_ANSWER = re.compile(
  r'(?:(?![.,;:] ).){3,40}?(?=[.,;:](?: |$)|'
  r' (?:if|when|whether|that|which|for|with|from|in|as|on|or|and|to) |$)'
)


def sentences(split: str) -> str:
  """A file of JSON lines: `inputs`, a sentence; `targets`, its package.

  Args:
    split: 'train' or 'validation'.

  Returns:
    The path of the file in the user's cache folder, built where there is none.
  """
  _check(split)

  def lines() -> Iterator[str]:
    for inputs, targets in labelled_sentences()[split]:
      yield json.dumps({'inputs': inputs, 'targets': targets}) + '\n'

  name = f'sentences-{embedded.edition(VERSION)}-{split}.jsonl'
  return embedded.cached(name, lines)


def questions() -> str:
  """A folder of SQuAD's two files, an article a module.

  Returns:
    Its path in the user's cache folder, where it is built once.
  """
  names = {'train': 'train-v1.1.json', 'validation': 'dev-v1.1.json'}
  folder = f'questions-{embedded.edition(VERSION)}'
  for split, name in names.items():

    def questions(split=split) -> list[str]:
      return [squad_json(returned()[split])]

    path = embedded.cached(f'{folder}/{name}', questions)
  return str(pathlib.Path(path).parent)


def squad_json(examples: Sequence[tuple[str, str, str, int, str]]) -> str:
  """Examples of `returned` in SQuAD's format."""
  articles: dict[str, list[dict]] = {}
  for module, name, context, start, answer in examples:
    question = {
      'id': f'{documents.uniform_hash(context.encode()):016x}',
      'question': f'What does {name} return?',
      'answers': [{'text': answer, 'answer_start': start}],
    }
    articles.setdefault(module, []).append(
      {'context': context, 'qas': [question]}
    )
  data = [{'title': t, 'paragraphs': p} for t, p in articles.items()]
  return json.dumps({'version': '1.1', 'data': data}, indent=1) + '\n'


def labelled_sentences() -> dict[str, list[tuple[str, str]]]:
  """Sentences with their labels, by split; see the module's text."""
  found: dict[str, tuple[str, str]] = {}
  both = set()
  for module, _, text in embedded.docstrings():
    label = module.partition('.')[0]
    if label not in LABELS:
      continue
    for sentence in _sentences(text):
      _, before = found.setdefault(sentence, (_split(text), label))
      if before != label:
        both.add(sentence)
  by_label = {
    (split, label): sorted(
      (
        sentence
        for sentence, home in found.items()
        if home == (split, label) and sentence not in both
      ),
      key=_order,
    )
    for split in SPLITS
    for label in LABELS
  }
  balanced = {}
  for split in SPLITS:
    count = min(len(by_label[split, label]) for label in LABELS)
    if split == 'validation':
      count = min(count, TEST_EXAMPLES // len(LABELS))
    _check_enough(count)
    balanced[split] = sorted(
      (
        (sentence, label)
        for label in LABELS
        for sentence in by_label[split, label][:count]
      ),
      # A label of which many were cut has the lowest hashes.
      key=lambda example: _order(' '.join(example)),
    )
  return balanced


def returned() -> dict[str, list[tuple[str, str, str, int, str]]]:
  """Questions by split: module, function, context, answer's start, answer."""
  found: dict[str, tuple[str, str, str, int, str]] = {}
  for module, name, text in embedded.docstrings():
    context = ' '.join(_BLANK_LINE.split(text.strip())[0].split())
    if name.startswith('_') or not context.isascii() or '>>>' in context:
      continue
    begins = list(_BEGINS.finditer(context))
    if len(begins) != 1 or not 40 <= len(context) <= 140:
      continue
    answer = _ANSWER.match(context, begins[0].end())
    if answer:
      example = module, name, context, answer.start(), answer[0]
      found.setdefault(context, example)
  splits = {
    split: sorted(
      (
        example
        for context, example in found.items()
        if _split(context) == split
      ),
      key=lambda example: _order(example[2]),
    )
    for split in SPLITS
  }
  splits['validation'] = splits['validation'][:TEST_EXAMPLES]
  for examples in splits.values():
    _check_enough(len(examples))
  return splits


def _sentences(text: str) -> Iterator[str]:
  for paragraph in _BLANK_LINE.split(text):
    if '>>>' in paragraph:
      continue
    for sentence in _SENTENCE_END.split(' '.join(paragraph.split())):
      if (
        30 <= len(sentence) <= 160
        and re.match(r'[A-Z][a-z]', sentence)
        and sentence.endswith('.')
        and len(_PROSE.findall(sentence)) >= 0.95 * len(sentence)
        and not any(label in sentence.lower() for label in LABELS)
      ):
        yield sentence


def _order(text: str) -> int:
  # Not of the text as it is: that hash has picked the split.
  return documents.uniform_hash(text[::-1].encode())


def _split(text: str) -> str:
  held_out = documents.uniform_hash(text.encode()) < int(HELD_OUT * 2**64)
  return 'validation' if held_out else 'train'


def _check(split: str) -> None:
  if split not in SPLITS:
    raise errors.UserError(f'The split is {split!r}; choose one of {SPLITS}.')


def _check_enough(count: int) -> None:
  if not count:
    raise errors.UserError(
      'This Python has no library sources to make examples of: fine-tune on'
      ' your own pairs (gin/data/pairs.gin).'
    )
