"""gin for commands: flags, files, and errors a person can act on.

Every command takes t5x's flags: `--gin_file` (several; later ones win),
`--gin.NAME=VALUE`, `--gin_bindings`, `--gin_search_paths` and `--dry_run`.
Library modules do not import gin: files open with
`from __gin__ import dynamic_registration` and name functions by import path.
"""

import difflib
import gc

# gin looks for files in packages with it, and leaves importing it to others.
import importlib.util  # noqa: F401
import logging
import os
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Sequence

import gin
from absl import app, flags

from t5x_variants import errors
from t5x_variants.cli import command_line, gin_hints, gin_values
from t5x_variants.run_dir import renamed

# What gin raises for a name it does not know.
_GIN_ERRORS = (ValueError, ImportError, AttributeError, NameError)
# What its parser and Python's tokenizer, on which it stands, raise.
_SYNTAX_ERRORS = (SyntaxError, tokenize.TokenError)
_MULTI_FLAGS = (
  ('gin_file', 'A gin file; give it several times, later ones win.'),
  (
    'gin_bindings',
    'A binding applied after all files; --gin.NAME=VALUE is short for it.',
  ),
  ('gin_search_paths', 'A folder in which gin files are looked for.'),
)
# The files of the last `parse`, for hints.
_given: list[str] = []


def define_flags() -> None:
  """Defines the flags every command has, once for all in a process."""
  if 'gin_file' in flags.FLAGS:
    return
  for name, text in _MULTI_FLAGS:
    flags.DEFINE_multi_string(name, [], text)
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Print the resolved configuration, the number of parameters and every '
    'missing macro, then stop; no data is touched.',
  )


def gin_folder() -> pathlib.Path:
  """The folder of the shipped gin files: of the wheel, or of the checkout."""
  package = pathlib.Path(__file__).resolve().parents[1]
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
  _given[:] = gin_files
  for folder in search_paths:
    if not os.path.isdir(folder):
      raise errors.UserError(
        f'--gin_search_paths={folder}: there is no folder of that name.'
      )
  for folder in (*search_paths, str(gin_folder().parent)):
    gin.add_config_file_search_path(folder)
  try:
    # gin logs an error for each folder that a file is not in.
    logging.disable(logging.ERROR)
    for path in sorted(gin_files, key=_of_a_slice):
      _parse_file(path, search_paths)
    _check_exclusive(gin_files)
    for binding in bindings:
      _parse_binding(binding)
  finally:
    logging.disable(logging.NOTSET)
  _check_binding_names(bindings)
  if names := gin_values.circular():
    raise errors.UserError(
      f'{names[0]} refers to itself, so that it has no value.'
    )


def _of_a_slice(path: str) -> bool:
  return gin_hints.kind_of(path) == 'tpu'


def _check_exclusive(gin_files: Sequence[str]) -> None:
  """Refuses two files of one kind: the later one would win without a word."""
  for kind in gin_hints.KINDS:
    of_kind = dict.fromkeys(
      f for f in gin_files if gin_hints.kind_of(f) == kind
    )
    if len(of_kind) > 1:
      raise errors.UserError(
        f'{" and ".join(of_kind)} exclude each other: a command takes one file '
        f'of gin/{kind}. Give one of them.'
      )


def _parse_file(path: str, search_paths: Sequence[str]) -> None:
  """Parses one file; says which files there are when there is none."""
  try:
    if not _parse_earlier(path):
      gin.parse_config_file(path)
  except OSError as error:
    raise errors.UserError(
      _not_found(path, str(error), search_paths)
    ) from error
  except _SYNTAX_ERRORS as error:
    where = getattr(error, 'filename', None) or path
    line = getattr(error, 'lineno', None) or error.args[1][0]
    text = (getattr(error, 'text', None) or '').strip()
    raise errors.UserError(
      f'{where}, line {line}: gin cannot read {text[:200]!r}. A line is NAME = '
      f'VALUE. {gin_hints.VALUES}'
    ) from error
  except RecursionError as error:
    raise errors.UserError(
      f'{path} includes itself, or a file that includes it.'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'--gin_file={path} is no text, and so no gin file.'
    ) from error
  except _GIN_ERRORS as error:
    hint = gin_hints.for_t5x(path)
    raise errors.UserError(gin_hints.explain(error, path) + hint) from error


def _parse_earlier(path: str) -> bool:
  """Parses a file in the names of an earlier version, if it is one."""
  file = pathlib.Path(path)
  if not file.is_file():
    return False  # gin looks for it in more places, where none is of a run.
  text = file.read_text(encoding='utf-8')
  if (now := renamed.updated(text)) == text:
    return False
  gin.parse_config(now)
  return True


def _not_found(path: str, error: str, search_paths: Sequence[str]) -> str:
  """The sentence for a file that cannot be opened, or one it includes."""
  # An included file may be the one that is missing: gin's words name it.
  found = re.match('Unable to open file: (.*)[.] Searched', error)
  missing = found[1] if found else path
  outer = '' if missing == path else f', which {path} includes,'
  if not missing:
    return '--gin_file= names no file: write --gin_file=FILE.'
  if any(
    os.path.isdir(os.path.join(folder, missing))
    for folder in ('', *search_paths, str(gin_folder().parent))
  ):
    what = f'{missing!r}{outer} is a folder and no gin file.'
  elif missing.count('.gin,'):
    several = ' '.join(f'--gin_file={file}' for file in missing.split(','))
    return f'--gin_file takes one file: write {several}.'
  else:
    looked = ', '.join(['the current folder', *search_paths])
    what = (
      f'There is no gin file {missing!r}{outer} in {looked} or beside the '
      'package.'
    )
  return f'{what}{gin_hints.shipped_files(gin_folder(), missing)}'


def _parse_binding(binding: str) -> None:
  """Parses one `NAME=VALUE`; shows the quoted form when quotes are missing."""
  name, _, value = binding.partition('=')
  name, value = name.strip(), value.strip()
  if not re.fullmatch(r'[\w./]+', name, re.ASCII):
    raise errors.UserError(
      f'--gin.{binding}: {name!a} is not a name; write --gin.MACRO=VALUE '
      'or --gin.module.function.parameter=VALUE.'
    )
  try:
    gin.parse_config(f'{name} = {value}')
  except _SYNTAX_ERRORS as error:
    raise errors.UserError(
      f'--gin.{name}={value}: {value!r} is not a gin value. '
      f'{_quoted(name, value)} {gin_hints.VALUES}'
    ) from error
  except _GIN_ERRORS as error:
    where = f'--gin.{name}={value}'
    raise errors.UserError(gin_hints.explain(error, where)) from error


def _quoted(name: str, value: str) -> str:
  """What was probably meant by a value that is none."""
  if value.capitalize() in ('True', 'False', 'None'):
    return f'Write --gin.{name}={value.capitalize()}.'
  bare = value.strip('"\'\u2018\u2019\u201c\u201d')
  return f'If it is meant as a string, quote it: --gin.{name}="\'{bare}\'".'


def _check_binding_names(bindings: Sequence[str]) -> None:
  """Refuses a macro on the command line that no file uses: a typo."""
  used = gin_values.used()
  for binding in bindings:
    name = binding.partition('=')[0].strip()
    if '.' in name or name in used:
      continue
    hint = gin_hints.home(gin_folder(), name, _given)
    if not hint:
      near = difflib.get_close_matches(name.upper(), used, n=1)
      hint = f' Did you mean {near[0]}?' if near else ''
    allowed = ', '.join(sorted(used)) or 'none, because no gin file was given'
    raise errors.UserError(
      f'--gin.{name}: no gin file given here uses a macro of that name.{hint} '
      f'Macros that can be set: {allowed}.'
    )


def has_value(*names: str) -> bool:
  """Whether each of these macros has a value."""
  return set(names) <= set(gin_values.defined()) - set(gin_values.missing())


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
  made = getattr(gin_values.defined()['MODEL'], 'configurable', None)
  if made and (mistakes := gin_values.mistakes(made.wrapped)):
    raise errors.UserError('\n'.join(mistakes))
  model = macro('MODEL')
  return model, gin.operative_config_str()


def configured(function: Callable) -> Callable:
  """`function` as the gin files configure it, when all of it can be called.

  Raises:
    errors.UserError: no gin file configures it (the run file is missing), or
      macros have no value, or values cannot be meant; all of these at once.
  """
  by_suggestion: dict[str, list[str]] = {}
  for name in gin_values.missing():
    suggestion = gin_hints.suggestion(gin_folder(), name, function)
    by_suggestion.setdefault(suggestion, []).append(name)
  lines = [
    f'{", ".join(names)}: {text}' for text, names in by_suggestion.items()
  ]
  if not gin_hints.is_configured(function):
    wrong = gin_hints.wrong_run_file(gin_folder(), function, _given)
    if wrong:
      raise errors.UserError(wrong)
    lines.insert(0, gin_hints.no_run_file(gin_folder(), function))
  if lines:
    raise errors.UserError(
      'The configuration is not complete. Add\n  ' + '\n  '.join(lines)
    )
  if mistakes := gin_values.mistakes(function):
    raise errors.UserError('\n'.join(mistakes))
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


def run(main: Callable[..., None], takes: str = '') -> None:
  """Runs a command: `main` after flags; one line for what a user can cause.

  `main` imports what takes long: --help does not wait for it, and Ctrl-C is
  answered meanwhile.

  Args:
    main: reads `flags.FLAGS`. Its module's docstring is the help.
    takes: what the arguments that are no flags are called, where `main` takes
      a list of them; '' where it takes nothing.
  """
  # Tracing a model makes many objects that live on. Looking through all of
  # them as often as Python would costs a second of every run.
  gc.set_threshold(50_000, 20, 20)

  def command() -> None:
    if set(command_line.HELP) & set(sys.argv[1:]):
      print(command_line.help_text(sys.modules[main.__module__].__doc__))
      return
    app.run(
      lambda rest: main(rest) if takes else main(),
      flags_parser=lambda argv: command_line.read_flags(argv, takes),
    )

  raise SystemExit(errors.exit_status(command, sentence))


def sentence(error: errors.UserError) -> str:
  """An error's words, with macros for the parameters they are bound to.

  A function names its argument as 'name=value', 'The name is value' or, after
  the macro of the shipped files, 'NAME is value'; a user knows the macro that
  the argument is bound to.
  """
  # gin adds in which calls an error was raised, for its own traceback.
  text = str(error).split('\n  In call to configurable')[0]
  for name, macro in gin_values.macros_by_parameter().items():
    text = re.sub(rf'(?<![\w./-]){name}=', f'{macro}=', text)
    text = re.sub(rf'\b(The {name}|{name.upper()}) is ', f'{macro} is ', text)
  return text
