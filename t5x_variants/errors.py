"""What ends a command: a user's slip, Ctrl-C; one line each.

A traceback is for defects of the program, never for a wrong name or a wrong
value.
"""

import os
import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
  """Wrong input in one sentence: what, its value, what is allowed."""


def check_positive(name: str, value: int) -> None:
  """Raises a `UserError` unless `value` is a whole number from 1 up."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value < 1:
    raise UserError(
      f'{name} is {value!r}; it must be a whole number from 1 up.'
    )


def exit_status(
  main: Callable[[], None],
  sentence: Callable[[UserError], str] = str,
) -> int:
  """Runs a command and returns the status to exit with.

  Args:
    main: the command; its own SystemExit passes through.
    sentence: what to print of a `UserError`.

  Returns:
    0; 2 after a `UserError`, whose sentence is printed; 130 after Ctrl-C, as
    shells count; 141 when nobody reads the output any more, as `head` does.
  """
  try:
    main()
    sys.stdout.flush()
  except UserError as error:
    print(f'error: {sentence(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('Interrupted.', file=sys.stderr)
    return 128 + signal.SIGINT
  except BrokenPipeError:
    # Python flushes once more at the end, and would fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  return 0
