"""Flags of commands: how they are read, and what is said of wrong ones."""

import difflib
import re
import textwrap
from collections.abc import Sequence

from absl import flags

from t5x_variants import errors

HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')


def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME=VALUE`."""
  rewritten = []
  for argument in arguments:
    if argument.startswith('--gin.'):
      if '=' not in argument:
        raise errors.UserError(
          f'{argument} has no value: write {argument}=VALUE (strings in '
          f'quotes: {argument}="\'text\'").'
        )
      argument = '--gin_bindings=' + argument.removeprefix('--gin.')
    rewritten.append(argument)
  return rewritten


def read_flags(arguments: Sequence[str], takes: str = '') -> list[str]:
  """Reads a command line into `flags.FLAGS`.

  Args:
    arguments: the program's name and all that follows it.
    takes: what the arguments that are no flags are called, for a command that
      needs some; '' for one that takes none.

  Returns:
    The arguments that are no flags.

  Raises:
    errors.UserError: a flag that does not exist, or one whose value cannot be
      used, or an argument that is no flag where none is taken, or none where
      there must be one.
  """
  try:
    rest = flags.FLAGS(rewrite_arguments(arguments))[1:]
  except flags.UnrecognizedFlagError as error:
    raise errors.UserError(_unknown_flag(error.flagname, arguments)) from error
  except flags.IllegalFlagValueError as error:
    raise errors.UserError(_wrong_value(str(error))) from error
  except flags.Error as error:
    raise errors.UserError(f'{error}: write --FLAG=VALUE.') from error
  if takes and not rest:
    raise errors.UserError(
      f'Arguments are missing: give {takes}. --help says more.'
    )
  if rest and not takes:
    prefix = '--gin.' if '=' in rest[0] else '--gin_file='
    raise errors.UserError(
      f'{rest[0]!r} is not a flag. Write {prefix}{rest[0]} or give files as '
      '--gin_file=FILE and values as --gin.NAME=VALUE.'
    )
  return rest


def _own_flags() -> list[flags.Flag]:
  """The flags that the command has defined, not those of libraries."""
  return [
    flag
    for module, found in flags.FLAGS.flags_by_module_dict().items()
    if not module.startswith('absl.')
    for flag in found
  ]


def _unknown_flag(name: str, arguments: Sequence[str]) -> str:
  """The sentence for a flag that does not exist."""
  given = next((a for a in arguments if a.lstrip('-').startswith(name)), name)
  _, equals, value = given.partition('=')
  own = {flag.name: flag for flag in _own_flags()}
  reads_gin = 'gin_bindings' in own
  if name.isupper() and reads_gin:
    return f'--{name} is not a flag. Write --gin.{name}={value or "VALUE"}.'
  near = difflib.get_close_matches(name, own, n=1)
  if near:
    return (
      f'--{name} is not a flag of this command. Did you mean '
      f'--{near[0]}{equals}{value}?'
    )
  more = '; a value of the gin files is set by --gin.NAME=VALUE' * reads_gin
  return (
    f'--{name} is not a flag of this command. Its flags are '
    f'{", ".join(f"--{flag}" for flag in own)}{more}.'
  )


def _wrong_value(text: str) -> str:
  """The sentence for absl's 'flag --NAME=VALUE: ...'."""
  name, value = re.findall('^flag --([^=]+)=(.*?): ', text, re.DOTALL)[0]
  flag = flags.FLAGS[name]
  allowed = 'true or false' if flag.boolean else flag.parser.syntactic_help
  allowed = re.sub(r'\binteger\b', 'whole number', allowed)
  return f'--{name} is {value!r}; it must be {allowed}.'


def help_text(description: str | None) -> str:
  """What --help prints: what a command does, and its flags."""
  lines = [(description or '').strip(), '', 'Flags:']
  for flag in _own_flags():
    # absl adds how to repeat a flag, which ours say themselves.
    words = flag.help.partition(';\n')[0]
    value = '' if flag.boolean else '=VALUE'
    default = '' if flag.default in (None, [], False) else flag.default
    default = f' Default: {default}.' if default != '' else ''
    lines += [
      f'  --{flag.name}{value}'
      + f', -{flag.short_name}' * bool(flag.short_name),
      *textwrap.wrap(
        f'{words}{default}',
        initial_indent=' ' * 6,
        subsequent_indent=' ' * 6,
      ),
    ]
  return '\n'.join(lines)
