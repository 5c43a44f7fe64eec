"""What differs between the configuration of a run and that of its restart.

Two configurations of gin are compared as text, with their macros filled in. A
parameter is known by its scope, its function and its own name; the module is
left out, since files may import it under other names. What the model and the
training data are made of may not change: a run is of one variant, model and
task for good. Every other difference is named, by its macro where it has one.
"""

import dataclasses
import re
from collections.abc import Mapping, Set

from t5x_variants import errors
from t5x_variants.run_dir import layout

# Of the model, what changes neither its function nor its parameters' names.
FREE = {
  'T5Config.dropout_rate',
  'T5Config.dtype',
  'FeedForwardConfig.implementation',
  'FeedForwardConfig.save',
  'T5Config.float32_attention_logits',
  'T5Config.remat_policy',
}
_FREE = FREE | {
  # Stacked or not, a checkpoint is read all the same.
  'T5Config.scan_layers',
  # Where prepared data is; its fingerprint stands in the data position.
  'DatasetConfig.prepared',
  'prepared.task_feature_lengths',
}
# May be written in several ways, and is compared by nothing.
_IGNORED = {'train.model_dir', 'MODEL_DIR'}
_ROOTS = ('train.model', 'train.train_dataset')
_KEY = re.compile(r'(?:(.*)/)?(?:\w+\.)*?(\w+(?:\.\w+)?)')
_MACRO_SCOPE = re.compile(r'(?:[A-Z][A-Z0-9_]*/)+')
_REFERENCE = re.compile(r'@(?:([\w/]+)/)?(?:\w+\.)*(\w+)')
_MACRO = re.compile(r'%([\w.]+)')


@dataclasses.dataclass(frozen=True)
class _Binding:
  """One parameter or macro of a configuration.

  Attributes:
    scope: gin's scope, '' for none.
    name: 'function.parameter', or the macro's name.
    value: its text with macros filled in and modules left out.
    macro: the macro that gives the value, or ''.
  """

  scope: str
  name: str
  value: str
  macro: str

  @property
  def shown(self) -> str:
    """What a person knows it by."""
    scope = self.scope.rpartition('/')[2]
    return self.macro or (f'{scope}/' if scope else '') + self.name


def between(
  before: str,
  now: str,
  roots: tuple[str, ...] = _ROOTS,
  free: Set[str] = _FREE,
  macro_scopes: bool = True,
) -> tuple[list[str], list[str]]:
  """Compares two configurations.

  Args:
    before: the text of a run's config.gin.
    now: the text of the configuration it is to go on with.
    roots: the names of what makes a run, with all that their values refer to.
    free: the names among these that may change.
    macro_scopes: whether scopes that are names of macros count. gin writes them
      in operative configurations only.

  Returns:
    What makes it another run, and every other difference; each a text such as
    'Z_LOSS was 0.0001 and is now 0.0'. What only one of the two has is left
    out: versions of the package differ in what they can be told.
  """
  old, new = (_bindings(text, macro_scopes) for text in (before, now))
  fixed = _reachable(new, roots) | _reachable(old, roots)
  other_run: dict[str, str] = {}
  others: dict[str, str] = {}
  for key in old.keys() & new.keys():
    was, is_now = old[key], new[key]
    if was.value == is_now.value or was.name in _IGNORED:
      continue
    # T5's own files give a number where ours compute one by `mlp.width`; other
    # shapes are refused with the checkpoint.
    computed = was.value.startswith('@') != is_now.value.startswith('@')
    if computed and was.name == 'T5Config.mlp_dim':
      continue
    shown = is_now.shown if is_now.macro else was.shown
    text = f'{shown} was {was.value} and is now {is_now.value}'
    is_fixed = key in fixed and was.name not in free
    (other_run if is_fixed else others)[shown] = text
  return _sorted(other_run), _sorted(
    {k: v for k, v in others.items() if k not in other_run}
  )


def check_same_run(model_dir: str, before: str, now: str) -> list[str]:
  """The differences that a run may have from its start, in words.

  Args:
    model_dir: the run directory, for the message.
    before: the text of its config.gin.
    now: the text of the configuration it is to go on with.

  Raises:
    errors.UserError: it would become another run.
  """
  other_run, others = between(before, now)
  if not other_run:
    return others
  names = [layout.variant(layout.parsed(text)) for text in (before, now)]
  whose = ''
  if None not in names and names[0] != names[1]:
    whose = f' of {names[0]}, and this one is of {names[1]}'
  raise errors.UserError(
    f'MODEL_DIR {model_dir} holds another run{whose}: '
    f'{"; ".join(other_run)}. Give this run another MODEL_DIR, or set back '
    'what differs. To start from the weights of that run, give another '
    f'MODEL_DIR and --gin.INITIAL_CHECKPOINT_PATH="\'{model_dir}\'".'
  )


def _bindings(text: str, macro_scopes: bool) -> dict[tuple[str, str], _Binding]:
  parsed = layout.parsed(text)
  if not macro_scopes:
    parsed = {_MACRO_SCOPE.sub('', key): raw for key, raw in parsed.items()}
  found = {}
  for key, raw in parsed.items():
    match = _KEY.fullmatch(key)
    if match is None:
      continue
    macro = _MACRO.fullmatch(raw)
    binding = _Binding(
      # A macro's name is a scope too, of what it refers to.
      scope=match[1] or '',
      name=match[2],
      value=_filled(raw, parsed),
      macro=macro[1] if macro else '',
    )
    found[binding.scope, binding.name] = binding
  return found


def _filled(raw: str, parsed: Mapping[str, str], depth: int = 0) -> str:
  """A value with its macros filled in and its references without modules."""
  if depth < 10:  # gin itself refuses a circle when it is used.
    raw = _MACRO.sub(
      lambda m: _filled(parsed.get(m[1], m[0]), parsed, depth + 1), raw
    )
  return _REFERENCE.sub(
    lambda m: f'@{m[1]}/{m[2]}' if m[1] else f'@{m[2]}', raw
  )


def _reachable(
  bindings: Mapping[tuple[str, str], _Binding], roots: tuple[str, ...]
) -> set[tuple[str, str]]:
  """Keys of all parameters that the values of the roots depend on."""
  found = {key for key in bindings if key[1] in roots}
  left = list(found)
  while left:
    for scope, function in _REFERENCE.findall(bindings[left.pop()].value):
      for key in bindings.keys() - found:
        of_function = key[1].startswith(f'{function}.')
        of_scope = not scope or not key[0] or scope in key[0].split('/')
        if of_function and of_scope:
          found.add(key)
          left.append(key)
  return found


def _sorted(texts: Mapping[str, str]) -> list[str]:
  return [texts[name] for name in sorted(texts)]
