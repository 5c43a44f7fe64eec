"""The one error a user's slip ends in.

Entry points print its sentence and exit with status 2; a traceback is for
defects of the program, never for a wrong name or a wrong value.
"""


class UserError(ValueError):
  """Wrong input, said in one sentence: what, its value, what is allowed."""


class DamagedError(UserError):
  """Something saved cannot be read; what was saved before it still may."""


def check_positive(name: str, value: int) -> None:
  """Raises a `UserError` unless `value` is a whole number from 1 up."""
  if not isinstance(value, int) or value < 1:
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
  text = getattr(error, 'strerror', None) or ' '.join(str(error).split())
  text = (text or type(error).__name__).rstrip('.')
  if len(text) > limit:
    text = f'{text[: limit // 3]} ... {text[-(limit - limit // 3) :]}'
  return text
