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
