"""gin for entry points: flags, files, and errors a person can act on.

Every entry point takes t5x's flags: `--gin_file` (several; later ones win),
`--gin.NAME=VALUE`, `--gin_bindings`, `--gin_search_paths` and `--dry_run`.
Library modules do not import gin: files open with
`from __gin__ import dynamic_registration` and name functions by import path.
"""

import difflib
import gc

# gin looks for files in packages with it, and leaves importing it to others.
import importlib.util  # noqa: F401
import logging
import pathlib
import re
import sys
from collections.abc import Sequence

import gin
from absl import app, flags

from t5x_variants import errors, gin_hints

# What gin raises for a name it does not know.
_GIN_ERRORS = (ValueError, ImportError, AttributeError, NameError)
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


def read_flags(arguments: Sequence[str]) -> list[str]:
  """Reads flags into `flags.FLAGS`; returns what is left over.

  Raises:
    errors.UserError: a flag that does not exist or has no value.
  """
  try:
    return flags.FLAGS(rewrite_arguments(arguments))
  except flags.UnrecognizedFlagError as error:
    raise errors.UserError(
      f'--{error.flagname} is not a flag of this command. A value of the gin '
      f'files is set by --gin.{error.flagname}=VALUE; the flags are '
      '--gin_file=FILE, --gin.NAME=VALUE, --gin_search_paths=FOLDER, '
      '--dry_run and --help.'
    ) from error
  except flags.Error as error:
    raise errors.UserError(f'{error}.') from error


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
    gin_files: paths; later files win. Those of a folder called tpu come after
      all others: a slice's mesh and batch are no defaults.
    bindings: `NAME=VALUE` texts; they win over files.
    search_paths: folders to look in.

  Raises:
    errors.UserError: a file, macro, name or value that cannot be used.
  """
  for folder in (*search_paths, str(gin_folder().parent)):
    gin.add_config_file_search_path(folder)
  try:
    # gin logs an error for each folder that a file is not in.
    logging.disable(logging.ERROR)
    for path in sorted(gin_files, key=_of_a_slice):
      _parse_file(path, search_paths)
    for binding in bindings:
      _parse_binding(binding)
    _check_binding_names(bindings)
  finally:
    logging.disable(logging.NOTSET)


def _of_a_slice(path: str) -> bool:
  return pathlib.PurePath(path).parent.name == 'tpu'


def _parse_file(path: str, search_paths: Sequence[str]) -> None:
  """Parses one file; says which files there are when there is none."""
  try:
    gin.parse_config_file(path)
  except OSError as error:
    # An included file may be the one that is missing: gin's words name it.
    found = re.match('Unable to open file: (.*)[.] Searched', str(error))
    missing = found[1] if found else path
    outer = '' if missing == path else f', which {path} includes,'
    looked = ', '.join(['the current folder', *search_paths])
    raise errors.UserError(
      f'There is no gin file {missing!r}{outer} in {looked} or beside the '
      f'package.{gin_hints.shipped_files(gin_folder(), missing)}'
    ) from error
  except SyntaxError as error:
    raise errors.UserError(
      f'{error.filename or path}, line {error.lineno}: gin cannot read '
      f'{(error.text or "").strip()!r}. A line is NAME = VALUE. '
      f'{gin_hints.VALUES}'
    ) from error
  except _GIN_ERRORS as error:
    hint = gin_hints.for_t5x(path)
    raise errors.UserError(gin_hints.explain(error, path) + hint) from error


def _parse_binding(binding: str) -> None:
  """Parses one `NAME=VALUE`; shows the quoted form when quotes are missing."""
  name, _, value = binding.partition('=')
  name, value = name.strip(), value.strip()
  if not re.fullmatch(r'[\w./]+', name):
    raise errors.UserError(
      f'--gin.{binding}: {name!r} is not a name; write --gin.MACRO=VALUE or '
      '--gin.module.function.parameter=VALUE.'
    )
  try:
    gin.parse_config(f'{name} = {value}')
  except SyntaxError as error:
    raise errors.UserError(
      f'--gin.{name}={value}: {value!r} is not a gin value. If it is meant '
      f'as a string, quote it: --gin.{name}="\'{value}\'". '
      f'{gin_hints.VALUES}'
    ) from error
  except _GIN_ERRORS as error:
    where = f'--gin.{name}={value}'
    raise errors.UserError(gin_hints.explain(error, where)) from error


def _macros() -> tuple[dict[str, object], set[str]]:
  """Returns defined macros with their values, and the names referred to."""
  # gin offers no public view of a configuration that is not yet complete.
  config = gin.config._CONFIG
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
  _, used = _macros()
  for binding in bindings:
    name = binding.partition('=')[0].strip()
    if '.' in name or name in used:
      continue
    homes = gin_hints.files_setting(gin_folder(), name, required=True)
    if homes:
      hint = f' It belongs to {" and ".join(homes)}: add --gin_file='
      hint += f'{homes[0]}.' if len(homes) == 1 else 'the one that is meant.'
    else:
      near = difflib.get_close_matches(name, used, n=1)
      hint = f' Did you mean {near[0]}?' if near else ''
    allowed = ', '.join(sorted(used)) or 'none, because no gin file was given'
    raise errors.UserError(
      f'--gin.{name}: no gin file given here uses a macro of that name.{hint} '
      f'Macros that can be set: {allowed}.'
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
  _raise_missing([])


def _raise_missing(lines: list[str]) -> None:
  """Raises one error of these lines and of every missing macro's cure."""
  by_cure: dict[str, list[str]] = {}
  for name in missing_macros():
    by_cure.setdefault(_cure(name), []).append(name)
  lines = lines + [
    f'  {", ".join(names)}: {cure}' for cure, names in by_cure.items()
  ]
  if lines:
    raise errors.UserError(
      'The configuration is not complete. Add\n' + '\n'.join(lines)
    )


def _cure(macro: str) -> str:
  """Says how a macro gets its value: by a shipped file, or by a flag."""
  files = gin_hints.files_setting(gin_folder(), macro, required=False)
  if set(gin_hints.files_setting(gin_folder(), macro, required=True)) - set(
    files
  ):
    # A file asks for it to be given: another that sets it is for other runs.
    files = []
  folders = sorted({file.split('/')[1] for file in files})
  for folder in folders:
    if folder in ('models', 'variants', 'data', 'runs'):
      return gin_hints.one_of(files, folder)
  return f'--gin.{macro}=VALUE (strings in quotes: "\'text\'")'


def has_value(*names: str) -> bool:
  """Whether each of these macros has a value."""
  return set(names) <= set(_macros()[0]) - set(missing_macros())


def macro(name: str):
  """The value of one macro, with the functions it refers to called."""
  with gin.config_scope(name):
    return gin.get_configurable('gin.macro')()


def read_model(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
):
  """The network of MODEL, without a run file, and its configuration as text.

  Raises:
    errors.UserError: a model or a variant file is missing, or see `parse`.
  """
  # Of the macros of model files it is the one that run files set.
  gin.parse_config('DROPOUT_RATE = 0.0')
  parse(gin_files, bindings, search_paths)
  if not has_value('MODEL', 'ACTIVATION', 'GATED'):
    raise errors.UserError(
      'The model is not known. Add --gin_file=gin/models/X.gin and '
      '--gin_file=gin/variants/Y.gin, those of the weights.'
    )
  model = macro('MODEL')
  return model, gin.operative_config_str()


def configured(function):
  """`function` as the gin files configure it, when nothing is missing.

  Raises:
    errors.UserError: no gin file configures it (the run file is missing), or
      macros have no value; all of these at once.
  """
  lines = []
  if not gin_hints.is_configured(function):
    runs = gin_hints.run_files(gin_folder(), function)
    lines.append(f'  a run file: {gin_hints.one_of(runs, "runs")}')
  _raise_missing(lines)
  return gin.get_configurable(function)


def started(function, *others):
  """`function` as the gin files of the flags configure it.

  With --dry_run the configuration is printed and None returned. One of
  `others` is taken instead if the files configure that.

  Raises:
    errors.UserError: see `parse` and `configured`.
  """
  chosen = flags.FLAGS
  parse(chosen.gin_file, chosen.gin_bindings, chosen.gin_search_paths)
  for other in filter(gin_hints.is_configured, others):
    function = other
  function = configured(function)
  if not chosen.dry_run:
    return function
  print(gin.config_str())
  print('# every macro has a value')
  return None


def run(main) -> None:
  """Runs an entry point: `main()` after flags; user errors without traceback.

  Args:
    main: takes nothing; reads `flags.FLAGS`.
  """
  # Tracing a model makes many objects that live on. Looking through all of
  # them as often as Python would costs a second of every run.
  gc.set_threshold(50_000, 20, 20)

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
      return read_flags(arguments)
    except errors.UserError as error:
      raise SystemExit(_report(error)) from None

  app.run(wrapped, flags_parser=parse_flags)


def _report(error: errors.UserError) -> int:
  """Prints the error's sentence to stderr; returns the exit status, 2."""
  # gin adds where in the configuration a call stood, for its own traceback.
  sentence = str(error).split('\n  In call to configurable')[0]
  print(f'error: {sentence}', file=sys.stderr)
  return 2
