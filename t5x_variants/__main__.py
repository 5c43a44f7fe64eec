"""Lists the commands: `python -m t5x_variants`."""

import ast
import difflib
import pathlib
import sys

from t5x_variants import errors


def commands() -> dict[str, str]:
  """What each command does, by its name, from the start of its docstring."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('[a-z]*.py')):
    text = path.read_text(encoding='utf-8')
    if "if __name__ == '__main__':" in text:
      description = ast.get_docstring(ast.parse(text)) or ''
      found[path.stem] = description.partition('\n')[0]
  return found


def main() -> None:
  """Prints them; a name behind the program's is a dot that was forgotten."""
  known = commands()
  names = [word for word in sys.argv[1:] if not word.startswith('-')]
  if names:
    near = difflib.get_close_matches(names[0], known, n=1)
    hint = f' Write python -m t5x_variants.{near[0]} ...' if near else ''
    raise errors.UserError(
      f'{names[0]!r} is not understood: a command is a module of its own.{hint}'
    )
  width = max(map(len, known))
  for name, description in known.items():
    print(f'python -m t5x_variants.{name:<{width}}  {description}')
  print('\nEach command explains itself with --help.')


if __name__ == '__main__':
  sys.exit(errors.exit_status(main))
