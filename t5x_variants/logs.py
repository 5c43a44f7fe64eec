"""What a person at the terminal sees of the logs of a command."""

import contextlib
import logging
import sys
import threading

from absl import logging as absl_logging


def quiet() -> None:
  """Leaves our own lines and others' warnings, one line each."""
  # What fails in a library is said by the error it ends in, once.
  absl_logging.set_verbosity(absl_logging.FATAL)
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(levelname)s: %(message)s'))
  ours = logging.getLogger('t5x_variants')
  ours.addHandler(handler)
  ours.propagate = False
  ours.setLevel(logging.INFO)
  sys.unraisablehook = _unraisable


def _unraisable(unraisable) -> None:
  """Drops tensorstore's late answers to a read or write that has failed.

  Orbax has closed the event loop that asked by then; each array of a damaged
  checkpoint would print a traceback, after the sentence that says so.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


_silent = threading.Event()


def silence() -> None:
  """From now on `say` says nothing: another host does."""
  _silent.set()


def say(line: str) -> None:
  """Prints a line for the person at the terminal, at once.

  A line that cannot be printed, because the log is on a full disk or nobody
  reads it any more, does not end a run: the records have its numbers.
  """
  if not _silent.is_set():
    with contextlib.suppress(OSError):
      print(line, file=sys.stderr, flush=True)
