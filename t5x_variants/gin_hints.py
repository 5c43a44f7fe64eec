"""What to say when a gin configuration is wrong: what is allowed instead."""

import difflib
import inspect
import pathlib
import re
from collections.abc import Sequence

import gin

VALUES = (
  'Values are numbers, True, False, None, strings in quotes, tuples, lists, '
  'dicts, %MACRO and @function.'
)
_NO_PARAMETER = re.compile(
  r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'"
)
_NO_FUNCTION = re.compile(r"No configurable matching (?:reference )?'@?(.+?)'")
_INCLUDE = re.compile(r"^include '(.+?)'", re.MULTILINE)
# Where in the configuration it was, which gin appends.
_WHERE = re.compile(r'\n *In (?:file "(.+?)", |bindings string )line (\d+)')


def files(folder: pathlib.Path, kind: str = '*') -> list[str]:
  """The shipped gin files, or those of one kind ('models', 'runs' ...).

  All but those for t5x's launcher, which is not the one that asks.
  """
  return sorted(
    f'gin/{file.relative_to(folder).as_posix()}'
    for file in folder.glob('*/*.gin')
    if kind in ('*', file.parent.name) and file.parent.name != 't5x'
  )


def files_setting(
  folder: pathlib.Path, macro: str, *, required: bool
) -> list[str]:
  """The shipped files that set a macro, or with `required` ask for it.

  To set it, it is enough to include a file that does.
  """
  unless = '' if required else r'(?!\s*%gin\.REQUIRED)'
  sets_it = re.compile(rf'^{re.escape(macro)}\s*={unless}', re.MULTILINE)

  def does(name: str) -> bool:
    text = (folder.parent / name).read_text(encoding='utf-8')
    if sets_it.search(text):
      return True
    return not required and any(map(does, _INCLUDE.findall(text)))

  return [name for name in files(folder) if does(name)]


def run_files(folder: pathlib.Path, function) -> list[str]:
  """The shipped files that say what `function`, an entry point's, does."""
  module = function.__module__.rpartition('.')[2]
  configures = re.compile(
    rf'^{re.escape(f"{module}.{function.__name__}")}\b', re.MULTILINE
  )
  return [
    name
    for name in files(folder, 'runs')
    if configures.search((folder.parent / name).read_text(encoding='utf-8'))
  ]


def one_of(names: Sequence[str], kind: str) -> str:
  """The flag for a choice between the files of one kind."""
  stems = [pathlib.PurePath(n).stem for n in names if f'/{kind}/' in n]
  if len(stems) == 1:
    return f'--gin_file=gin/{kind}/{stems[0]}.gin'
  return f'--gin_file=gin/{kind}/X.gin with X one of {", ".join(stems)}'


def shipped_files(folder: pathlib.Path, missing: str) -> str:
  """Which files could have been meant by one that is missing."""
  path = pathlib.PurePath(missing)
  known = files(folder, path.parent.name) or files(folder)
  near = difflib.get_close_matches(path.stem, map(_stem, files(folder)), n=1)
  meant = [name for name in files(folder) if _stem(name) in near]
  hint = f' Did you mean {" or ".join(meant)}?' if meant else ''
  return f'{hint} Those that come with it: {", ".join(known)}.'


def _stem(name: str) -> str:
  return pathlib.PurePath(name).stem


def is_configured(function) -> bool:
  """Whether every parameter of `function` that needs a value is bound."""
  # gin offers no public view of what it knows.
  registry, config = gin.config._REGISTRY, gin.config._CONFIG
  bound = set()
  for (_, selector), parameters in config.items():
    if registry.get_match(selector).wrapped is function:
      bound |= set(parameters)
  return bound >= {
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is parameter.empty
  }


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
      selector.removeprefix('t5x_variants.')
      for selector in {s for _, s in config} - {'gin.macro'}
    )
    text = f'there is no function {name!r}.' + _choice(
      name, names, 'functions configured so far'
    )
  return f'{where}: {" ".join(text.split())}'


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
