"""The one error a user's slip ends in.

Entry points print its sentence and exit with status 2; a traceback is for
defects of the program, never for a wrong name or a wrong value.
"""


class UserError(ValueError):
  """Wrong input, said in one sentence: what, its value, what is allowed."""
