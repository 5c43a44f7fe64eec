"""What a person at the terminal is told."""

import io
import sys

from t5x_variants import logs


class Full(io.StringIO):
  """A log on a full disk."""

  def flush(self):
    raise OSError(28, 'No space left on device')


def test_a_line_that_cannot_be_printed_ends_nothing(monkeypatch):
  log = Full()
  monkeypatch.setattr(sys, 'stderr', log)
  logs.say('step 1')
  assert log.getvalue() == 'step 1\n'
