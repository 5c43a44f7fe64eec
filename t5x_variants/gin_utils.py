"""gin for entry points: flags, files, and errors a person can act on.

Every entry point takes t5x's flags: `--gin_file` (several; later ones win),
`--gin.NAME=VALUE`, `--gin_bindings`, `--gin_search_paths` and `--dry_run`.
Library modules do not import gin: files open with
`from __gin__ import dynamic_registration` and name functions by import path.
"""

import difflib
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, flags

import gin
from t5x_variants import errors

_MULTI_FLAGS = (
  ('gin_file', 'A gin file; give it several times, later ones win.'),
  (
    'gin_bindings',
    'A binding applied after all files; --gin.NAME=VALUE is short for it.',
  ),
  ('gin_search_paths', 'A folder in which gin files are looked for.'),
)


def define_flags() -> None:
  """Defines the flags every entry point has."""
  for name, text in _MULTI_FLAGS:
    flags.DEFINE_multi_string(name, [], text)
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Print the resolved configuration, the number of parameters and every '
    'missing macro, then stop; no data is touched.',
  )


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


def gin_folder() -> pathlib.Path:
  """The folder of the shipped gin files: of the wheel, or of the checkout."""
  package = pathlib.Path(__file__).resolve().parent
  shipped = package / 'gin'
  return shipped if shipped.is_dir() else package.parent / 'gin'


def parse(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> None:
  """Reads gin files, then bindings, into gin's global configuration.

  A file is looked for as given, then below each search path, then below the
  folder that holds the shipped `gin/`, so that `gin/models/tiny.gin` is found
  from anywhere.

  Args:
    gin_files: paths; later files win.
    bindings: `NAME=VALUE` texts; they win over files.
    search_paths: folders to look in.

  Raises:
    errors.UserError: a file, macro, name or value that cannot be used.
  """
  for folder in (*search_paths, str(gin_folder().parent)):
    gin.add_config_file_search_path(folder)
  try:
    for path in gin_files:
      _parse_file(path, search_paths)
    for binding in bindings:
      _parse_binding(binding)
    _check_binding_names(bindings)
  except errors.UserError:
    raise
  except (ValueError, ImportError, AttributeError, NameError) as error:
    # gin's own words for an unknown function or parameter are clear, except
    # that they come with the stack of its parser.
    sentence = ' '.join(str(error).split())
    raise errors.UserError(f'The gin configuration is wrong: {sentence}') from (
      error
    )


def _parse_file(path: str, search_paths: Sequence[str]) -> None:
  """Parses one file; says which files there are when there is none."""
  try:
    gin.parse_config_file(path)
  except OSError as error:
    folder = pathlib.PurePath(path).parent.name
    known = sorted(
      f'gin/{file.relative_to(gin_folder())}'
      for file in gin_folder().glob(f'{folder}/*.gin')
    ) or sorted(
      f'gin/{file.relative_to(gin_folder())}'
      for file in gin_folder().glob('*/*.gin')
    )
    looked = ', '.join(['the current folder', *search_paths])
    raise errors.UserError(
      f'No gin file {path!r} (looked in {looked} and beside the package). '
      f'Those that come with it: {", ".join(known)}.'
    ) from error
  except SyntaxError as error:
    raise errors.UserError(
      f'{path}, line {error.lineno}: gin cannot read '
      f'{(error.text or "").strip()!r} ({error.msg.splitlines()[0]}).'
      ' Strings need quotes.'
    ) from error


def _parse_binding(binding: str) -> None:
  """Parses one `NAME=VALUE`; shows the quoted form when quotes are missing."""
  name, _, value = binding.partition('=')
  name, value = name.strip(), value.strip()
  try:
    gin.parse_config(f'{name} = {value}')
  except SyntaxError as error:
    raise errors.UserError(
      f'--gin.{name}={value}: {value!r} is not a gin value. If it is meant '
      f'as a string, quote it: --gin.{name}="\'{value}\'". Allowed are '
      'numbers, True, False, None, quoted strings, tuples, lists, dicts, '
      '%MACRO and @function.'
    ) from error


def _macros() -> tuple[dict[str, object], set[str]]:
  """Returns defined macros with their values, and the names referred to."""
  # gin offers no public view of a configuration that is not yet complete.
  config = gin.config._CONFIG  # pylint: disable=protected-access
  defined = {
    scope: parameters.get('value')
    for (scope, selector), parameters in config.items()
    if selector == 'gin.macro'
  }
  used = {
    reference.scoped_selector.removesuffix('/gin.macro')
    for reference in gin.config.iterate_references(config)
    if reference.selector == 'gin.macro'
  }
  return defined, used


def _check_binding_names(bindings: Sequence[str]) -> None:
  """Refuses a macro on the command line that no file uses: a typo."""
  defined, used = _macros()
  for binding in bindings:
    name = binding.partition('=')[0].strip()
    if '.' in name or name in used or not re.fullmatch(r'\w+', name):
      continue
    if name in defined and not used:
      continue
    near = difflib.get_close_matches(name, used, n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise errors.UserError(
      f'No gin file uses a macro named {name}.{hint} Macros that can be '
      f'set here: {", ".join(sorted(used))}.'
    )


def missing_macros() -> list[str]:
  """Names of macros that are used but have no value yet, sorted."""
  defined, used = _macros()

  def required(value) -> bool:
    return (
      getattr(value, 'scoped_selector', None) == 'gin.REQUIRED/gin.constant'
    )

  names = used | {n for n, value in defined.items() if required(value)}
  return sorted(
    name for name in names if name not in defined or required(defined[name])
  )


def check_macros() -> None:
  """Raises one error that lists every macro without a value, and its cure."""
  missing = missing_macros()
  if not missing:
    return
  lines = [f'  {name}: {_cure(name)}' for name in missing]
  raise errors.UserError(
    f'{len(missing)} macro(s) have no value yet:\n' + '\n'.join(lines)
  )


def _cure(macro: str) -> str:
  """Says how a macro gets its value: by a shipped file, or by a flag."""
  sets_it = re.compile(rf'^{macro}\s*=\s*(?!%gin\.REQUIRED)', re.MULTILINE)
  by_folder: dict[str, list[str]] = {}
  for file in sorted(gin_folder().glob('*/*.gin')):
    if sets_it.search(file.read_text(encoding='utf-8')):
      by_folder.setdefault(file.parent.name, []).append(file.stem)
  cures = [
    f'--gin_file=gin/{folder}/X.gin with X one of {", ".join(stems)}'
    for folder, stems in by_folder.items()
    if folder in ('models', 'variants', 'data')
  ]
  return cures[0] if cures else f'--gin.{macro}=VALUE (strings in quotes)'


def macro(name: str):
  """The value of one macro, with the functions it refers to called."""
  with gin.config_scope(name):
    return gin.get_configurable('gin.macro')()


def configured(function):
  """`function` as the gin files configure it.

  Raises:
    errors.UserError: no gin file configures it (the run file is missing).
  """
  try:
    return gin.get_configurable(function)
  except ValueError as error:
    runs = sorted(file.stem for file in gin_folder().glob('runs/*.gin'))
    raise errors.UserError(
      'No run file was given: add --gin_file=gin/runs/X.gin with X one of '
      f'{", ".join(runs)}.'
    ) from error


def run(main) -> None:
  """Runs an entry point: `main()` after flags; user errors without traceback.

  Args:
    main: takes nothing; reads `flags.FLAGS`.
  """

  def wrapped(arguments: list[str]) -> None:
    try:
      if len(arguments) > 1:
        raise errors.UserError(
          f'{arguments[1]!r} is not a flag. Give files as '
          '--gin_file=FILE and values as --gin.NAME=VALUE.'
        )
      main()
    except errors.UserError as error:
      raise SystemExit(_report(error)) from None

  def parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
      return app.parse_flags_with_usage(rewrite_arguments(arguments))
    except errors.UserError as error:
      raise SystemExit(_report(error)) from None

  app.run(wrapped, flags_parser=parse_flags)


def _report(error: errors.UserError) -> int:
  """Prints the error's sentence to stderr; returns the exit status, 2."""
  # gin adds where in the configuration a call stood, for its own traceback.
  sentence = str(error).split('\n  In call to configurable')[0]
  print(f'error: {sentence}', file=sys.stderr)
  return 2
