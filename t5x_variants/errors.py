"""What ends a command: a user's slip, Ctrl-C; one line each.

A traceback is for defects of the program, never for a wrong name or a wrong
value.
"""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable

# In messages of TensorFlow, names of nodes and operations, and the traceback of
# a graph's function; in those of tensorstore, lines of its source and options.
_INTERNALS = re.compile(
  r'\nTraceback[\s\S]*|\{\{.*?\}\}\s*|\s*\[Op:\w+\]'
  r'|\s*\[(?:source locations|tensorstore_spec)=[\s\S]*'
)


class UserError(ValueError):
  """Wrong input in one sentence: what, its value, what is allowed."""


class DamagedError(UserError):
  """Something saved cannot be read; what was saved before it still may."""


def check_positive(name: str, value: int) -> None:
  """Raises a `UserError` unless `value` is a whole number from 1 up."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value < 1:
    raise UserError(
      f'{name} is {value!r}; it must be a whole number from 1 up.'
    )


def reason(error: BaseException, limit: int = 300) -> str:
  """A library's error as part of a sentence: one line, no full stop.

  Args:
    error: what was caught.
    limit: characters at most; libraries name the file first and the cause
      last, so that the middle is left out.
  """
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None)
  text = _INTERNALS.sub('', str(text or error)).split()
  text = (' '.join(text) or type(error).__name__).rstrip('.')
  if len(text) > limit:
    text = f'{text[: limit // 3]} ... {text[-(limit - limit // 3) :]}'
  return text


def exit_status(
  main: Callable[[], None],
  sentence: Callable[[UserError], str] = str,
) -> int:
  """Runs a command and returns the status to exit with.

  Args:
    main: the command; its own SystemExit passes through.
    sentence: what to print of a `UserError`.

  Returns:
    0; 2 after a `UserError`, whose sentence is printed, and after a full disk;
    130 after Ctrl-C, as shells count; 141 when nobody reads the output any
    more, as `head` does.
  """
  try:
    main()
    sys.stdout.flush()
  except UserError as error:
    _say(f'error: {sentence(error)}')
    return 2
  except KeyboardInterrupt:
    _say('Interrupted.')
    return 128 + signal.SIGINT
  except BrokenPipeError:
    # Python flushes once more at the end, and would fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except OSError as error:
    # What gin raises in its place has the text alone.
    found = re.search(r'\[Errno (\d+)\]', str(error))
    number = int(found[1]) if found else error.errno
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise
    where = f' for {error.filename}' if error.filename else ''
    _say(
      f'error: There is no room{where} ({os.strerror(number)}). What was '
      'complete is intact; make room, then start the same command again.'
    )
    return 2
  return 0


def _say(line: str) -> None:
  """Prints a last line; on a full disk, where the log may be too, none."""
  with contextlib.suppress(OSError):
    print(line, file=sys.stderr, flush=True)
