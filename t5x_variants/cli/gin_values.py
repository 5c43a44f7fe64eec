"""Checks configured values before anything is called with them.

A value must be of the kind that its parameter's annotation names, wherever gin
found it: in a file, on the command line, behind a macro or several. Which
numbers a macro of the shipped files may be is in the tables below. A mistake is
reported under the macro's name, which is what the user wrote, and not under the
parameter's.
"""

import ast
import collections
import contextlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import gin

LARGEST = 2**31 - 1  # JAX counts in 32 bits.


class Range(typing.NamedTuple):
  """The numbers that a macro may be.

  Attributes:
    test: whether a number is one of them.
    words: which they are.
  """

  test: Callable[[float], bool]
  words: str


_FROM_0 = (
  'COEFFICIENT_LEARNING_RATE COEFFICIENT_WEIGHT_DECAY LEARNING_RATE '
  'LOW_DATA_SEED METRIC_EXAMPLES RANDOM_SEED SEEDS SENTENCE_PIECE_EXTRA_IDS '
  'Z_LOSS'
)
_FROM_1 = (
  'BATCH_SIZE CHECKPOINT_PERIOD DATA_AXIS_SIZE DECODE_BATCH_SIZE DECODE_LENGTH '
  'EARLY_STOPPING_PATIENCE EVAL_PERIOD EVAL_STEPS INPUT_LENGTH '
  'KEEP_CHECKPOINTS KEEP_PERIOD LOG_PERIOD LOW_DATA_TRAIN LOW_DATA_VALIDATION '
  'MIXTURE_MAXIMUM MLP_DIM MODEL_AXIS_SIZE NUM_MICROBATCHES PROFILE_STEPS '
  'TASK_FEATURE_LENGTHS TRAIN_STEPS VOCAB_SIZE WARMUP_STEPS'
)
_SHARE = Range(lambda x: 0 <= x <= 1, 'from 0 to 1')
_PART = Range(lambda x: 0 <= x < 1, 'from 0 to less than 1')
RANGES = {
  **dict.fromkeys(_FROM_0.split(), Range(lambda x: x >= 0, 'from 0 up')),
  **dict.fromkeys(_FROM_1.split(), Range(lambda x: x >= 1, 'from 1 up')),
  'COEFFICIENT_DECAY_FRACTION': _SHARE,
  'COEFFICIENT_WARMUP_FRACTION': _SHARE,
  'DROPOUT_RATE': _PART,
  'LABEL_SMOOTHING': _PART,
  'PARAMETER_PARTITIONING_DIMS': Range(lambda x: x in (1, 2), '1 or 2'),
  'VALIDATION_FRACTION': Range(lambda x: 0 < x < 1, 'above 0 and below 1'),
}
EXAMPLES = {
  'PROFILE_STEPS': '"(20, 25)"',
  'TASK_FEATURE_LENGTHS': "\"{'inputs': 512, 'targets': 114}\"",
}
# Strings that may be empty.
_MAY_BE_EMPTY = ('PREFIX',)
_ANY = (typing.Any, inspect.Parameter.empty)
_NONE = (None, type(None))
_NUMBERS = (int, float)
_LISTS = (Sequence, list, tuple)
_DICTS = (Mapping, dict)


def defined() -> dict[str, object]:
  """The macros that are defined, with their values as configured."""
  # gin offers no public view of a configuration that is not yet complete.
  return {
    scope: parameters.get('value')
    for (scope, selector), parameters in gin.config._CONFIG.items()
    if selector == 'gin.macro'
  }


def used() -> set[str]:
  """Names of the macros that values refer to."""
  return set(_macros_in(gin.config._CONFIG))


def is_required(value) -> bool:
  """Whether it is `%gin.REQUIRED`, in whose place a value must be given."""
  selector = getattr(value, 'scoped_selector', None)
  return selector == 'gin.REQUIRED/gin.constant'


def missing() -> list[str]:
  """Names of macros that are used but have no value yet, sorted."""
  known = defined()
  return sorted(
    name
    for name in used() | set(known)
    if name not in known or is_required(known[name])
  )


def circular() -> list[str]:
  """Names of macros whose value depends on itself, sorted."""
  known = defined()
  return sorted(
    name for name in known if name in _all_macros(known[name], known)
  )


def bindings_below(
  function: Callable,
) -> Iterator[tuple[gin.config.Configurable, str, object]]:
  """Everything that gin would configure in a call of `function`.

  Args:
    function: without gin's wrapper.

  Yields:
    A function, the name of a parameter of it, and the parameter's value: of
    `function` itself and of all functions that its values refer to.
  """
  known = defined()
  bound: dict = collections.defaultdict(list)
  for (_, selector), parameters in gin.config._CONFIG.items():
    bound[gin.config._REGISTRY.get_match(selector)] += parameters.items()
  waiting = [found for found in bound if found.wrapped is function]
  seen = set()
  while waiting:
    configurable = waiting.pop()
    if configurable.selector in seen:
      continue
    seen.add(configurable.selector)
    for name, value in bound[configurable]:
      yield configurable, name, value
      values = [value, *map(known.get, _all_macros(value, known))]
      waiting += [
        reference.configurable
        for reference in gin.config.iterate_references({'': values})
        if not _macro_name(reference)
      ]


def mistakes(function: Callable) -> list[str]:
  """A sentence for each value below `function` that cannot be meant."""
  known = defined()
  found: dict[str, None] = {}
  for configurable, parameter, value in bindings_below(function):
    name = f'{short(configurable.selector)}.{parameter}'
    kind = _annotation(configurable.wrapped, parameter)
    found |= dict.fromkeys(_mistakes_in(name, value, kind, known))
  return list(found)


def macros_by_parameter() -> dict[str, str]:
  """The macro that a parameter is bound to, wherever one of its name is.

  Names of parameters that have other values somewhere are left out.
  """
  known, found = defined(), collections.defaultdict(set)
  for (_, selector), parameters in gin.config._CONFIG.items():
    for name, value in parameters.items():
      macro, _ = _followed(value, known)
      # What a function returns is no value that somebody wrote.
      if selector != 'gin.macro' and (macro or not _is_call(value)):
        found[name].add(macro)
  return {
    name: macro
    for name, macros in found.items()
    for macro in macros
    if len(macros) == 1 and macro
  }


def kind_of_macro(macro: str) -> object:
  """The annotation of a parameter that the macro is bound to."""
  for (_, selector), parameters in gin.config._CONFIG.items():
    for name, value in parameters.items():
      if selector != 'gin.macro' and _macro_name(value) == macro:
        function = gin.config._REGISTRY.get_match(selector).wrapped
        return _annotation(function, name)
  return typing.Any


def choices(kind) -> tuple:
  """The members of a union, or the kind itself."""
  union = typing.get_origin(kind) in (types.UnionType, typing.Union)
  return typing.get_args(kind) if union else (kind,)


def short(selector: str) -> str:
  """A selector as gin files have it, without the packages."""
  return '.'.join(selector.split('.')[-2:])


def _annotation(function: Callable, parameter: str) -> object:
  found = inspect.signature(function).parameters.get(parameter)
  return typing.Any if found is None else found.annotation


def _macro_name(value) -> str | None:
  """The name of the macro that a value refers to; None of any other value."""
  if getattr(value, 'selector', None) != 'gin.macro':
    return None
  return value.scoped_selector.removesuffix('/gin.macro')


def _macros_in(value) -> Iterator[str]:
  """Names of the macros that a value refers to."""
  references = gin.config.iterate_references({'': value})
  return filter(None, map(_macro_name, references))


def _all_macros(value, known: Mapping[str, object]) -> set[str]:
  """The same with those that these macros refer to in turn."""
  found, waiting = set(), set(_macros_in(value))
  while waiting:
    found.add(name := waiting.pop())
    waiting |= set(_macros_in(known.get(name))) - found
  return found


def _mistakes_in(
  name: str, value, kind, known: Mapping[str, object]
) -> Iterator[str]:
  """Sentences for a value, and for the macros among its items."""
  macro, value = _followed(value, known)
  name = macro or name
  for item, item_kind in _items(value, kind) or ():
    if _macro_name(item):
      yield from _mistakes_in(name, item, item_kind, known)
  if _is_call(value) and (lacking := _unbound(value)):
    yield _uncallable(name, value, kind, lacking)
  elif not _fits(value, kind, name):
    yield _sentence(name, value, kind)


def _followed(value, known: Mapping[str, object]) -> tuple[str | None, object]:
  """The last macro of a chain of macros, and its value, if it has one."""
  last, seen = None, set()
  while (macro := _macro_name(value)) and macro in known and macro not in seen:
    seen.add(macro)
    last, value = macro, known[macro]
  return last, value


def _is_call(value) -> bool:
  """Whether a value is `@function()`, or a macro without a value."""
  return getattr(value, 'evaluate', False)


def _unbound(call) -> list[str]:
  """The parameters of a call that need a value and have none."""
  configurable = call.configurable
  if configurable.selector.startswith('gin.'):
    return []
  bound = set()
  for (_, selector), parameters in gin.config._CONFIG.items():
    if selector == configurable.selector:
      bound |= set(parameters)
  return [name for name in required(configurable.wrapped) if name not in bound]


def required(function: Callable) -> list[str]:
  """The parameters that a call of a function must give."""
  parameters = inspect.signature(function).parameters.values()
  return [
    parameter.name
    for parameter in parameters
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  ]


def _uncallable(name: str, call, kind, lacking: Sequence[str]) -> str:
  """The sentence for a call without all that it needs."""
  function = short(call.configurable.selector)
  meant = f'--gin.{function}.{lacking[0]}=VALUE'
  if kind not in _ANY and any(map(_is_function, choices(kind))):
    meant = f'--gin.{name}=@{function}'
  return (
    f'{name} is @{function}(), a call that has no value for '
    f'{", ".join(lacking)}. Write {meant}.'
  )


def _items(value, kind) -> list[tuple[object, object]] | None:
  """The items of a list or dict of that kind, with their kinds; else None."""
  for choice in choices(kind):
    origin, arguments = typing.get_origin(choice), typing.get_args(choice)
    if origin in _LISTS and isinstance(value, list | tuple):
      return [(item, arguments[0]) for item in value]
    if origin in _DICTS and isinstance(value, Mapping):
      keys, values = arguments
      return [(key, keys) for key in value] + [
        (item, values) for item in value.values()
      ]
  return None


def _fits(value, kind, name: str) -> bool:
  """Whether a value is of a kind, and its numbers in the macro's range."""
  if isinstance(value, gin.config.ConfigurableReference):
    # What a call returns is not known before it is made.
    return value.evaluate or any(map(_is_function, choices(kind)))
  items = _items(value, kind)
  if items is not None:
    return all(_fits(item, item_kind, name) for item, item_kind in items)
  return any(_is(value, choice, name) for choice in choices(kind))


def _is_function(kind) -> bool:
  return kind in _ANY or (typing.get_origin(kind) or kind) is Callable


def _is(value, kind, name: str) -> bool:
  """Whether a literal is of a kind that is no union."""
  if kind in _NUMBERS:
    return (
      isinstance(value, int if kind is int else int | float)
      and not isinstance(value, bool)
      and (abs(value) <= LARGEST if kind is int else math.isfinite(value))
      and (name not in RANGES or RANGES[name].test(value))
    )
  if kind is str:
    # A library's own parameters know best what they are empty for.
    may_be_empty = name in _MAY_BE_EMPTY or '.' in name
    whole = isinstance(value, str) and '\0' not in value
    return whole and (value != '' or may_be_empty)
  if kind in _ANY:
    return True
  if kind in _NONE:
    return value is None
  kind = typing.get_origin(kind) or kind
  if kind in _LISTS and isinstance(value, str):
    return False
  return isinstance(value, kind) if isinstance(kind, type) else True


def _sentence(name: str, value, kind) -> str:
  """What is wrong, what is allowed, and what was probably meant."""
  text = repr(value)
  text = text if len(text) <= 200 else f'{text[:200]}...'
  allowed = ' or '.join(_words(choice, name) for choice in choices(kind))
  if isinstance(value, int) and abs(value) > LARGEST:
    allowed += f', at most {LARGEST}'
  meant = EXAMPLES.get(name) or _meant(value, kind, name)
  meant = f' Write --gin.{name}={meant}.' if meant else ''
  return f'{name} is {text}; it must be {allowed}.{meant}'


def _words(kind, name: str, *, several: bool = False) -> str:
  """A kind of value in words: one, or several of them."""
  if kind in _NUMBERS:
    words = 'whole number' if kind is int else 'number'
    allowed = f' {RANGES[name].words}' if name in RANGES else ''
    return (f'{words}s' if several else f'a {words}') + allowed
  if kind is bool:
    return 'True or False'
  if kind is str:
    return 'strings in quotes' if several else 'a string in quotes'
  if kind in _NONE:
    return 'None'
  origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin in _LISTS or origin in _DICTS:
    what = 'list' if origin in _LISTS else 'dict'
    words = f'{what}s' if several else f'a {what}'
    if arguments:
      item = arguments[0 if what == 'list' else 1]
      words += f' of {_words(item, name, several=True)}'
    return words
  if _is_function(kind):
    return 'functions' if several else 'a function, such as @module.function'
  return f'a {getattr(kind, "__name__", kind)}, as a gin file makes it'


def _meant(value, kind, name: str) -> str:
  """What was probably meant, as the shell is given it; '' if unknown."""
  guesses: list = [[value]]
  if isinstance(value, str):
    with contextlib.suppress(SyntaxError, ValueError):
      guesses.insert(0, ast.literal_eval(value.strip().capitalize()))
    matching = gin.config._REGISTRY.matching_selectors(value)
    if any(map(_is_function, choices(kind))) and len(matching) == 1:
      return f'@{short(matching[0])}'
  elif isinstance(value, float) and value.is_integer():
    guesses.insert(0, int(value))
  elif isinstance(value, int) and not isinstance(value, bool):
    guesses.append(str(value))
  for guess in guesses:
    if guess is not None and _fits(guess, kind, name):
      return f'"{guess!r}"' if isinstance(guess, str | list) else repr(guess)
  return ''
