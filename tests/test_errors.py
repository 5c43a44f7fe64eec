"""What a library says in an error becomes a phrase of our sentence."""

import pytest

from t5x_variants import errors


class OpError(Exception):
  """As TensorFlow has it: the words are in `message`."""

  def __init__(self, message):
    super().__init__('node name and more')
    self.message = message


@pytest.mark.parametrize(
  'error, phrase',
  [
    (
      OSError(28, 'No space left on device', 'a.txt'),
      'No space left on device',
    ),
    (ValueError('one\n  and two.'), 'one and two'),
    (ValueError(), 'ValueError'),
    (
      OpError('{{function_node __wrapped__X}} a.txt; gone [Op:ReadFile]'),
      'a.txt; gone',
    ),
    (OpError('no number\nTraceback (most recent call last):\n x'), 'no number'),
    (
      ValueError("Cannot open [2, 3] [source locations='a.cc:1\nb.cc:2']"),
      'Cannot open [2, 3]',
    ),
  ],
)
def test_a_reason_has_neither_line_ends_nor_a_librarys_own_names(error, phrase):
  assert errors.reason(error) == phrase


def test_a_long_reason_keeps_its_file_and_its_cause():
  phrase = errors.reason(ValueError('file.txt ' + 'x' * 1000 + ' is empty.'))
  assert len(phrase) < 320
  assert phrase.startswith('file.txt') and phrase.endswith('is empty')
