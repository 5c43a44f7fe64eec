"""What to write instead, when a gin configuration is wrong or incomplete."""

import difflib
import inspect
import pathlib
import re
from collections.abc import Callable, Sequence

import gin

from t5x_variants.cli import gin_values

VALUES = (
  'Values are numbers, True, False, None, strings in quotes, tuples, lists, '
  'dicts, %MACRO and @function.'
)
# Of each of these a command is given one file.
KINDS = ('models', 'variants', 'data', 'runs', 'tpu', 'sweeps')
# A macro that every file of a kind sets.
_MARKS = {
  'models': 'MODEL',
  'variants': 'ACTIVATION',
  'data': 'TASK_FEATURE_LENGTHS',
}
# What the files of gin/runs and gin/sweeps configure, and who calls it.
_COMMANDS = {
  'compiling.Plan': 'python -m t5x_variants.precompile',
  'evaluation.evaluate': 'python -m t5x_variants.evaluate',
  'evaluation.score': 'python -m t5x_variants.evaluate',
  'inference.infer': 'python -m t5x_variants.infer',
  'sweeps.Sweep': 'python -m t5x_variants.sweep',
  'trainer.train': 'python -m t5x_variants.train',
}
_NO_PARAMETER = re.compile(
  r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'"
)
_NO_FUNCTION = re.compile(r"No configurable matching (?:reference )?'@?(.+?)'")
_INCLUDE = re.compile(r"^include '(.+?)'", re.MULTILINE)
# Where in the configuration it was, which gin appends.
_WHERE = re.compile(r'\n *In (?:file "(.+?)", |bindings string )line (\d+)')


def kind_of(file: str) -> str:
  """The kind of a gin file, which is the name of its folder; '' of others."""
  folder = pathlib.PurePath(file).parent.name
  return folder if folder in KINDS else ''


def files(folder: pathlib.Path, kind: str = '*') -> list[str]:
  """The shipped gin files, or those of one kind ('models', 'runs' ...).

  All but those for t5x's launcher, which is not the one that asks.
  """
  return sorted(
    f'gin/{file.relative_to(folder).as_posix()}'
    for file in folder.glob('*/*.gin')
    if kind in ('*', file.parent.name) and file.parent.name != 't5x'
  )


def files_setting(folder: pathlib.Path, macro: str) -> list[str]:
  """The shipped files that set a macro, or include one that does.

  Those that ask for it again (%gin.REQUIRED) are not among them.
  """
  found = re.compile(
    rf'^{re.escape(macro)}\s*=(\s*%gin\.REQUIRED)?', re.MULTILINE
  )

  def sets(name: str) -> bool:
    text = _text(folder, name)
    if here := found.search(text):
      return not here[1]
    return any(map(sets, _INCLUDE.findall(text)))

  return [name for name in files(folder) if sets(name)]


def files_using(folder: pathlib.Path, macro: str) -> list[str]:
  """The shipped files that refer to a macro, or include one that does."""
  found = re.compile(rf'^[^#\n]*%{re.escape(macro)}\b', re.MULTILINE)

  def uses(name: str) -> bool:
    text = _text(folder, name)
    return bool(found.search(text)) or any(map(uses, _INCLUDE.findall(text)))

  return [name for name in files(folder) if uses(name)]


def command_of(folder: pathlib.Path, file: str) -> str:
  """The command that a shipped file of gin/runs or gin/sweeps is for."""
  text = _text(folder, file)
  for function, command in _COMMANDS.items():
    if re.search(rf'^{re.escape(function)}\b', text, re.MULTILINE):
      return command
  return next((command_of(folder, f) for f in _INCLUDE.findall(text)), '')


def run_files(folder: pathlib.Path, function: Callable) -> list[str]:
  """The shipped files that say what `function`, a command's, does."""
  module = function.__module__.rpartition('.')[2]
  command = _COMMANDS.get(f'{module}.{function.__name__}')
  return [
    name
    for kind in ('runs', 'sweeps')
    for name in files(folder, kind)
    if command_of(folder, name) == command
  ]


def one_of(names: Sequence[str]) -> str:
  """The flag for a choice between files, all of one kind."""
  kind = kind_of(names[0])
  stems = [pathlib.PurePath(name).stem for name in names]
  if len(stems) == 1:
    return f'--gin_file=gin/{kind}/{stems[0]}.gin'
  return f'--gin_file=gin/{kind}/X.gin with X one of {", ".join(stems)}'


def suggestion(folder: pathlib.Path, macro: str, function: Callable) -> str:
  """How a macro without a value gets one: by a shipped file, or by a flag."""
  defined = gin_values.defined()
  runs = run_files(folder, function)
  files = files_setting(folder, macro)
  for kind in (
    () if macro in defined else ('models', 'variants', 'data', 'runs')
  ):
    there = (
      is_configured(function) if kind == 'runs' else _MARKS[kind] in defined
    )
    of_kind = [f for f in files if kind_of(f) == kind]
    if kind == 'runs':
      of_kind = [f for f in of_kind if f in runs]
    if of_kind and not there:
      return one_of(of_kind)
  kinds = gin_values.choices(gin_values.kind_of_macro(macro))
  value = (
    '"\'...\'"' if str in kinds else gin_values.EXAMPLES.get(macro, 'VALUE')
  )
  return f'--gin.{macro}={value}'


def home(folder: pathlib.Path, macro: str, given: Sequence[str]) -> str:
  """Which file to give for a macro that no given file uses; '' if unknown."""
  sweep = any(kind_of(name) == 'sweeps' for name in given)
  homes = [
    name
    for name in files_using(folder, macro)
    if (kind_of(name) == 'sweeps') == sweep
  ]
  # What a run file uses, files of other kinds set.
  homes.sort(key=lambda name: kind_of(name) != 'runs')
  if not homes:
    return ''
  kind = kind_of(homes[0])
  homes = [name for name in homes if kind_of(name) == kind]
  other = next((name for name in given if kind_of(name) == kind), None)
  if other is None:
    return f' Add {one_of(homes)}, where it belongs.'
  if kind == 'runs' and other in files(folder):
    command = command_of(folder, other)
    mine = [name for name in homes if command_of(folder, name) == command]
    if not mine:
      theirs = command_of(folder, homes[0])
      return f' It belongs to {homes[0]}, which is for {theirs}.'
    homes = mine
  return f' It belongs elsewhere: give {one_of(homes)} in place of {other}.'


def no_run_file(folder: pathlib.Path, function: Callable) -> str:
  """What to add when no file says what `function` does."""
  names = run_files(folder, function)
  if not names:
    return f'values for {function.__module__}.{function.__qualname__}'
  return f'a run file: {one_of(names)}'


def wrong_run_file(
  folder: pathlib.Path, function: Callable, given: Sequence[str]
) -> str:
  """The sentence for a run file of another command; '' if there is none."""
  for name in set(given) & set(files(folder)):
    if kind_of(name) in ('runs', 'sweeps'):
      return (
        f'{name} is for {command_of(folder, name)}. Give '
        f'{one_of(run_files(folder, function))}, in place of it.'
      )
  return ''


def shipped_files(folder: pathlib.Path, missing: str) -> str:
  """Which files could have been meant by one that is missing."""
  path = pathlib.PurePath(missing)
  known = files(folder, path.parent.name) or files(folder, path.name)
  near = difflib.get_close_matches(path.stem, map(_stem, files(folder)), n=1)
  meant = [name for name in files(folder) if _stem(name) in near]
  hint = f' Did you mean {" or ".join(meant)}?' if meant else ''
  known = known or files(folder)
  return f'{hint} Those that come with it: {", ".join(known)}.'


def _stem(name: str) -> str:
  return pathlib.PurePath(name).stem


def _text(folder: pathlib.Path, name: str) -> str:
  return (folder.parent / name).read_text(encoding='utf-8')


def is_configured(function: Callable) -> bool:
  """Whether every parameter of `function` that needs a value is bound."""
  # gin offers no public view of what it knows.
  registry, config = gin.config._REGISTRY, gin.config._CONFIG
  bound = set()
  for (_, selector), parameters in config.items():
    if registry.get_match(selector).wrapped is function:
      bound |= set(parameters)
  return bound >= set(gin_values.required(function))


def explain(error: Exception, where: str) -> str:
  """One sentence of gin's error: where, what, and which names there are."""
  text = str(error)
  place = _WHERE.search(text)
  if place:
    text = text[: place.start()]
    where = f'{place[1]}, line {place[2]}' if place[1] else where
  parameter, function = _NO_PARAMETER.search(text), _NO_FUNCTION.search(text)
  registry, config = gin.config._REGISTRY, gin.config._CONFIG
  if parameter:
    known = registry.get_match(parameter[1]).wrapped
    text = f'{parameter[1]} has no parameter {parameter[2]!r}.' + _choice(
      parameter[2], list(inspect.signature(known).parameters), 'parameters'
    )
  elif function:
    name = function[1].removesuffix('()')
    names = sorted(
      gin_values.short(selector)
      for selector in {s for _, s in config} - {'gin.macro'}
    )
    text = f'there is no function {name!r}.' + _choice(
      name, names, 'functions configured so far'
    )
  return f'{where}: {" ".join(text.split()).rstrip(".")}.'


def for_t5x(path: str) -> str:
  """Which file to take here in place of one for t5x's launcher."""
  if pathlib.PurePath(path).parent.name != 't5x':
    return ''
  return (
    f' {path} is for python -m t5x.train and its like (docs/from_t5x.md); here '
    'take a file of gin/runs.'
  )


def _choice(name: str, names: Sequence[str], what: str) -> str:
  """The names there are, the nearest one first."""
  near = difflib.get_close_matches(name, names, n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return f'{hint} The {what}: {", ".join(names) or "none"}.'
