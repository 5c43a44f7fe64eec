"""SQuAD v1.1 as text: find the answer to a question in a paragraph.

'question: ... context: ...' -> the first gold answer (Raffel et al., JMLR
2020, appendix D). Metrics compare a prediction with all gold answers. Text is
left as it is: T5's own code puts spaces around punctuation in questions,
contexts and answers, which the paper does not show and which SQuAD's script
would punish ('U . S .' is not 'U.S.').

Files: train-v1.1.json and dev-v1.1.json, or the same of another data set in
SQuAD's format.

References:
  Rajpurkar et al. 2016 (arXiv:1606.05250)
"""

import json

from t5x_variants import errors
from t5x_variants.data.benchmarks import recipes
from t5x_variants.data.tasks import metrics as scores


def json_rows(path: str):
  """Yields ('question ID', row) for each question of a file of SQuAD's."""
  try:
    articles = json.loads(recipes.read_text(path))['data']
    for article in articles:
      for paragraph in article['paragraphs']:
        for question in paragraph['qas']:
          answers = [answer['text'] for answer in question['answers']]
          yield (
            f'question {question["id"]}',
            {
              'context': paragraph['context'],
              'question': question['question'],
              'answers': answers,
            },
          )
  except (ValueError, KeyError, TypeError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
      f'The file {path} is not in the format of SQuAD v1.1: {error!r}; it must'
      ' be an object with data, paragraphs, context, qas, question, id, answers'
      ' and text.'
    ) from error


def question_to_text(row, split: str) -> list[dict]:
  """A question with its context and gold answers."""
  del split
  answers = row['answers']
  if isinstance(answers, dict):  # As TFDS has them.
    answers = answers['text']
  if not answers:
    raise errors.UserError(
      'The question has no answer: every one of SQuAD v1.1 has (v2.0 is'
      ' another task).'
    )
  return [
    {
      'inputs': f'question: {row["question"]} context: {row["context"]}',
      'targets': answers[0],
      'gold': json.dumps(answers),
    }
  ]


RECIPES = {
  'squad': recipes.Recipe(
    files={'train': 'train-v1.1.json', 'validation': 'dev-v1.1.json'},
    read=json_rows,
    tfds='squad/v1.1:3.0.0',
    convert=question_to_text,
    metric_fns=(scores.squad,),
    size=87_599,
    postprocess_fn=recipes.gold,
  )
}
