"""A few rows of every benchmark in its official format, and their texts.

The rows are made up; columns, fields, files and folders are the benchmarks'.
"""

import json


def _tsv(*rows):
  """Rows whose cells are parted by bars here."""
  return ''.join(row.replace('|', '\t') + '\n' for row in rows)


def _jsonl(*rows):
  return '\n'.join(json.dumps(row) for row in rows) + '\n'


def _records(keys, *rows):
  return _jsonl(*(dict(zip(keys.split(), row, strict=True)) for row in rows))


_MNLI_HEAD = (
  'index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|'
  'sentence1_parse|sentence2_parse|sentence1|sentence2|label1|'
)


def _nli(*labels, more=0):
  """MNLI's columns; training has one annotation, development sets five."""
  head = ''.join(f'label{i + 2}|' for i in range(more))
  return _tsv(
    f'{_MNLI_HEAD}{head}gold_label',
    *(
      f'0|1|1n|fiction|(|(|(|(|P{i}.|H{i}.|{x}|{"neutral|" * more}{x}'
      for i, x in enumerate(labels)
    ),
  )


GLUE = {
  'CoLA': _tsv(
    'gj04|1||They drank the pub dry.', 'gj04|0|*|They drank "the pub.'
  ),
  'SST-2': _tsv('sentence|label', 'a joy |1', "it 's \u2028 dull |0"),
  'MRPC': '\ufeff'
  + _tsv(
    'Quality|#1 ID|#2 ID|#1 String|#2 String',
    '1|10|11|He said "no.|He refused.',
    '0|12|13|It rose.|It fell.',
  ),
  'STS-B': _tsv(
    'index|genre|filename|year|old_index|source1|source2|sentence1|sentence2'
    '|score',
    '0|main|f|2012|1|none|none|A plane.|A jet.|5.000',
    '1|main|f|2012|1|none|none|A man.|A fish.|2.714',
    '2|main|f|2012|1|none|none|A cat.|Rain.|0.100',
    '3|main|f|2012|1|none|none|A cat.|Sun.|0.300',
  ),
  'QQP': _tsv(
    'id|qid1|qid2|question1|question2|is_duplicate',
    '0|1|2|Why?|How come?|1',
    '1|3|4|Broken row|of too few',
    '2|5|6|Who?|When?|0',
  ),
  'QNLI': _tsv(
    'index|question|sentence|label',
    '0|Who won?|Ann won.|entailment',
    '1|Who lost?|It rained.|not_entailment',
  ),
  'RTE': _tsv(
    'index|sentence1|sentence2|label',
    '0|Ann won.|Somebody won.|entailment',
    '1|Ann won.|Ann lost.|not_entailment',
  ),
}
_MULTIRC = {
  'idx': 7,
  'version': 1.1,
  'passage': {
    'text': '<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>Bob sat.<br>',
    'questions': [
      {
        'question': question,
        'idx': idx,
        'answers': [
          dict(zip(('text', 'idx', 'label'), answer, strict=True))
          for answer in answers
        ],
      }
      for question, idx, answers in (
        ('Who ran?', 3, [('Ann', 8, 1), ('Bob', 9, 0)]),
        ('Who sat?', 4, [('Bob', 10, 1)]),
      )
    ],
  },
}
_RECORD_TEXT = (
  'Ann met Bob in Rome.\n@highlight\nBob paid\n@highlight\nAnn left'
)
_LAST = _RECORD_TEXT.rindex('Ann')
_RECORD = {
  'source': 'Daily mail',
  'idx': 5,
  'passage': {
    'text': _RECORD_TEXT,
    'entities': [
      {'start': 0, 'end': 2},
      {'start': 8, 'end': 10},
      {'start': 15, 'end': 18},
      {'start': _LAST, 'end': _LAST + 2},
    ],
  },
  'qas': [
    {
      'query': '@placeholder ate there',
      'idx': 6,
      'answers': [
        {'start': 8, 'end': 10, 'text': 'Bob'},
        {'start': 0, 'end': 2, 'text': 'Ann'},
        {'start': 0, 'end': 2, 'text': 'Ann'},
      ],
    }
  ],
}


def _wsc(text, candidate, pronoun, index, label, idx):
  target = {
    'span1_text': candidate,
    'span2_text': pronoun,
    'span1_index': 0,
    'span2_index': index,
  }
  return {'text': text, 'target': target, 'idx': idx, 'label': label}


SUPER_GLUE = {
  'BoolQ': _records(
    'question passage idx label',
    ('is it so', 'So: It is.', 0, True),
    ('was it', 'It was not.', 1, False),
  ),
  'CB': _records(
    'premise hypothesis label idx',
    ('A?', 'a', 'neutral', 0),
    ('B?', 'b', 'contradiction', 1),
    ('C?', 'c', 'entailment', 2),
  ),
  'COPA': _records(
    'premise choice1 choice2 question label idx',
    ('It fell.', 'It broke.', 'It flew.', 'effect', 0, 0),
    ('It fell.', 'It sang.', 'It slipped.', 'cause', 1, 1),
  ),
  'MultiRC': _jsonl(_MULTIRC),
  'ReCoRD': _jsonl(_RECORD),
  'RTE': _records(
    'premise hypothesis label idx',
    ('A.', 'B.', 'entailment', 0),
    ('C.', 'D.', 'not_entailment', 1),
  ),
  'WiC': _records(
    'word sentence1 sentence2 idx label start1 start2 end1 end2 version',
    (
      *('place', 'A place of work.', 'My place or yours?', 0, False),
      *(2, 3, 7, 8, 1.1),
    ),
  ),
  'WSC': _jsonl(
    _wsc('Ann thanked Bob because he had helped.', 'Bob', 'he', 4, True, 0),
    _wsc('Ann thanked Bob because he had helped.', 'Ann', 'he', 4, False, 1),
    _wsc('"Ann  saw it," she said of use.', 'Ann', 'She', 3, True, 2),
  ),
}
_SQUAD_QUESTIONS = [
  {
    'id': id,
    'question': question,
    'answers': [{'answer_start': at, 'text': text} for at, text in answers],
  }
  for id, question, answers in (
    ('x1', 'Where?', [(30, 'Rome'), (27, 'in Rome')]),
    ('x2', 'Whose?', [(0, "Ann's")]),
  )
]
_SQUAD_TEXT = "Ann's book (1854) came out\nin Rome."
_PARAGRAPH = {'context': _SQUAD_TEXT, 'qas': _SQUAD_QUESTIONS}
SQUAD = json.dumps(
  {'version': '1.1', 'data': [{'title': 'Rome', 'paragraphs': [_PARAGRAPH]}]}
)


def write(folder):
  """Writes all files below glue, super_glue and squad."""

  def put(path, text):
    path = folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

  for name, text in GLUE.items():
    put(f'glue/{name}/train.tsv', text)
    put(f'glue/{name}/dev.tsv', text)
  put('glue/MNLI/train.tsv', _nli('neutral', 'entailment', 'contradiction'))
  put('glue/MNLI/dev_matched.tsv', _nli('entailment', more=4))
  put('glue/MNLI/dev_mismatched.tsv', _nli('contradiction', 'neutral', more=4))
  for name, text in SUPER_GLUE.items():
    put(f'super_glue/{name}/train.jsonl', text)
    put(f'super_glue/{name}/val.jsonl', text)
  put('squad/train-v1.1.json', SQUAD)
  put('squad/dev-v1.1.json', SQUAD)


_MNLI = 'mnli hypothesis: H{0}. premise: P{0}.'
_RTE = 'rte sentence1: Ann won. sentence2: '
_RECORD_INPUT = (
  'record query: @placeholder ate there entities: Ann, Bob, Rome passage: Ann'
  ' met Bob in Rome. Bob paid. Ann left'
)
_RAN = 'paragraph: Sent 1: Ann ran. Sent 2: Bob sat. '
_SQUAD = f'context: {_SQUAD_TEXT}'
_WSC = 'wsc: Ann thanked Bob because *he* had helped.'
_WSC_LAST = 'wsc: "Ann  saw it," *she* said of use.'

# By task and split; where the splits have the same rows, by task alone. The
# gold is what metrics compare, where it is not the target's text.
TEXTS = {
  'glue_cola': [
    ('cola sentence: They drank the pub dry.', 'acceptable'),
    ('cola sentence: They drank "the pub.', 'unacceptable'),
  ],
  'glue_sst2': [
    ('sst2 sentence: a joy ', 'positive'),
    ("sst2 sentence: it 's \u2028 dull ", 'negative'),
  ],
  'glue_mrpc': [
    (
      'mrpc sentence1: He said "no. sentence2: He refused.',
      'equivalent',
    ),
    ('mrpc sentence1: It rose. sentence2: It fell.', 'not_equivalent'),
  ],
  'glue_stsb': [
    ('stsb sentence1: A plane. sentence2: A jet.', '5.0', 5.0),
    ('stsb sentence1: A man. sentence2: A fish.', '2.8', 2.714),
    # Halves go to the even multiple of 0.2.
    ('stsb sentence1: A cat. sentence2: Rain.', '0.0', 0.1),
    ('stsb sentence1: A cat. sentence2: Sun.', '0.4', 0.3),
  ],
  'glue_qqp': [
    ('qqp question1: Why? question2: How come?', 'duplicate'),
    ('qqp question1: Who? question2: When?', 'not_duplicate'),
  ],
  ('glue_mnli_matched', 'train'): [
    (_MNLI.format(0), 'neutral'),
    (_MNLI.format(1), 'entailment'),
    (_MNLI.format(2), 'contradiction'),
  ],
  ('glue_mnli_matched', 'validation'): [(_MNLI.format(0), 'entailment')],
  ('glue_mnli_mismatched', 'validation'): [
    (_MNLI.format(0), 'contradiction'),
    (_MNLI.format(1), 'neutral'),
  ],
  ('glue_mnli_matched', 'validation_mismatched'): [
    (_MNLI.format(0), 'contradiction'),
    (_MNLI.format(1), 'neutral'),
  ],
  'glue_qnli': [
    ('qnli question: Who won? sentence: Ann won.', 'entailment'),
    ('qnli question: Who lost? sentence: It rained.', 'not_entailment'),
  ],
  'glue_rte': [
    (_RTE + 'Somebody won.', 'entailment'),
    (_RTE + 'Ann lost.', 'not_entailment'),
  ],
  'super_glue_boolq': [
    ('boolq passage: So: It is. question: is it so', 'True'),
    ('boolq passage: It was not. question: was it', 'False'),
  ],
  'super_glue_cb': [
    ('cb hypothesis: a premise: A?', 'neutral'),
    ('cb hypothesis: b premise: B?', 'contradiction'),
    ('cb hypothesis: c premise: C?', 'entailment'),
  ],
  'super_glue_copa': [
    (
      'copa choice1: It broke. choice2: It flew. premise: It fell. question:'
      ' effect',
      'choice1',
    ),
    (
      'copa choice1: It sang. choice2: It slipped. premise: It fell. question:'
      ' cause',
      'choice2',
    ),
  ],
  'super_glue_multirc': [
    (
      f'multirc question: {question} answer: {answer} {_RAN}',
      value,
      {'group': f'7/{group}', 'value': value},
    )
    for question, answer, value, group in (
      ('Who ran?', 'Ann', 'True', 3),
      ('Who ran?', 'Bob', 'False', 3),
      ('Who sat?', 'Bob', 'True', 4),
    )
  ],
  ('super_glue_record', 'train'): [
    (_RECORD_INPUT, 'Ann', ['Ann', 'Bob']),
    (_RECORD_INPUT, 'Bob', ['Ann', 'Bob']),
  ],
  ('super_glue_record', 'validation'): [(_RECORD_INPUT, 'Ann', ['Ann', 'Bob'])],
  'super_glue_rte': [
    ('rte hypothesis: B. premise: A.', 'entailment'),
    ('rte hypothesis: D. premise: C.', 'not_entailment'),
  ],
  'super_glue_wic': [
    (
      'wic sentence1: A place of work. sentence2: My place or yours? word:'
      ' place',
      'False',
    )
  ],
  ('super_glue_wsc', 'train'): [
    (_WSC, 'Bob', 'True'),
    (_WSC_LAST, 'Ann', 'True'),
  ],
  ('super_glue_wsc', 'validation'): [
    (_WSC, 'Bob', 'True'),
    (_WSC, 'Ann', 'False'),
    (_WSC_LAST, 'Ann', 'True'),
  ],
  'squad': [
    (f'question: Where? {_SQUAD}', 'Rome', ['Rome', 'in Rome']),
    (f'question: Whose? {_SQUAD}', "Ann's", ["Ann's"]),
  ],
}
