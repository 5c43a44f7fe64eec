"""Losses of runs against steps, and which runs belong together.

Runs of one group differ in RANDOM_SEED. Runs that differ in any other setting
are groups of their own, and the setting is named.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from t5x_variants import errors, logs
from t5x_variants.analysis import pages, results
from t5x_variants.run_dir import layout

# Settings that change what is written down, not what is learned. Runs of one
# group may differ in them.
_INDIFFERENT = {
  *('RANDOM_SEED', 'MODEL_DIR', 'LOG_PERIOD', 'EVAL_PERIOD'),
  *('CHECKPOINT_PERIOD', 'KEEP_CHECKPOINTS', 'KEEP_PERIOD', 'PROFILE_STEPS'),
}
# The numbers that records must have.
_NEEDED = {
  'train': ('loss', 'seconds_per_step', 'tokens_per_second'),
  'eval': ('loss',),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory.

  Attributes:
    folder: the run directory.
    settings: see `layout.settings`.
    records: those of 'train', at least one, and of 'eval'.
  """

  folder: pathlib.Path
  settings: dict[str, str]
  records: dict[str, list[dict]]

  @property
  def name(self) -> str:
    """The variant's; of a run without a configuration, its folder's."""
    return layout.variant(self.settings) or self.folder.resolve().name

  @property
  def telling(self) -> dict[str, str]:
    """The settings that change what is learned."""
    return {k: v for k, v in self.settings.items() if k not in _INDIFFERENT}

  def seconds(self, steps: np.ndarray) -> np.ndarray:
    """Training time at each step, from how long the steps took."""
    train = self.records['train']
    at = np.asarray([0] + [r['step'] for r in train], float)
    rate = np.asarray([r['seconds_per_step'] for r in train])
    total = np.concatenate([[0.0], np.cumsum(rate * np.diff(at))])
    beyond = np.maximum(steps - at[-1], 0.0) * rate[-1]
    return np.interp(steps, at, total) + beyond


Groups = dict[str, list[Run]]  # By label.


@dataclasses.dataclass(frozen=True)
class Curve:
  """The loss of a group of runs, at the steps all of them have.

  Attributes:
    steps: [S].
    seconds: [S], the mean over runs.
    loss: [runs, S].
  """

  steps: np.ndarray
  seconds: np.ndarray
  loss: np.ndarray

  @property
  def mean(self) -> np.ndarray:
    """Over runs, [S]."""
    return self.loss.mean(0)

  @property
  def deviation(self) -> np.ndarray:
    """The sample standard deviation over runs, [S]; 0 for one run."""
    return self.loss.std(0, ddof=min(1, len(self.loss) - 1))


def read(folders: Sequence[str]) -> list[Run]:
  """Reads run directories; a note tells which are left out, and why.

  Raises:
    errors.UserError: nothing is left.
  """
  found, left_out = [], []
  for folder in results.find(folders):
    try:
      settings = layout.settings(folder)
      records = {
        split: results.read_records(folder, split, needed)
        for split, needed in _NEEDED.items()
      }
    except errors.UserError as error:
      left_out.append(str(error))
      continue
    if records['train']:
      found.append(Run(folder, settings, records))
    else:
      left_out.append(
        f'{folder} has no training record yet; one is written every '
        'LOG_PERIOD steps.'
      )
  if not found:
    raise errors.UserError(' '.join(left_out))
  for text in left_out:
    logs.say(f'note: left out: {text}')
  return found


def split_of(found: Sequence[Run]) -> str:
  """'eval', or 'train' when a run was never evaluated."""
  missing = [str(run.folder) for run in found if not run.records['eval']]
  if not missing:
    return 'eval'
  logs.say(
    f'note: {", ".join(missing)}: no held-out loss, so training loss is drawn.'
  )
  return 'train'


def group(found: Sequence[Run]) -> Groups:
  """Runs that differ in nothing but the seed, by label, in a fixed order."""
  alike: dict[object, list[Run]] = {}
  for run in found:
    key = frozenset(run.telling.items()) or str(run.folder)
    alike.setdefault(key, []).append(run)
  order = {name: i for i, name in enumerate(layout.VARIANTS)}
  labelled = []
  for name in {run.name for run in found}:
    groups = [members for members in alike.values() if members[0].name == name]
    place = order.get(name, len(order))
    labelled += [
      (place, label, members)
      for label, members in zip(_labels(name, groups), groups, strict=True)
    ]
  labelled.sort(key=lambda entry: entry[:2])
  return {label: members for _, label, members in labelled}


def _labels(name: str, groups: list[list[Run]]) -> list[str]:
  """The variant's name, and what tells groups of one name apart."""
  if len(groups) == 1:
    return [name]
  settings = [members[0].telling for members in groups]
  names = _differing(settings)
  if not 0 < len(names) <= 3:
    return [f'{name} ({members[0].folder})' for members in groups]
  values = (
    ', '.join(f'{n.rpartition(".")[2]} {s.get(n, "unset")}' for n in names)
    for s in settings
  )
  return [f'{name} ({text})' for text in values]


def _differing(settings: list[dict[str, str]]) -> list[str]:
  """Names of the settings that are not the same in all."""
  names = sorted(set().union(*settings))
  return [n for n in names if len({s.get(n) for s in settings}) > 1]


def note_differences(groups: Groups, split: str) -> None:
  """Notes what makes lines less comparable than they look."""
  settings = [
    run.telling for runs in groups.values() for run in runs if run.settings
  ]
  differ = [
    f'{n} ({", ".join(sorted({s.get(n, "unset") for s in settings}))})'
    for n in _differing(settings)
    if n != 'GATED' and not re.match('ACTIVATION(/|$)', n)
  ]
  if differ:
    logs.say(
      f'note: the runs differ in more than the variant: {"; ".join(differ)}.'
    )
  for label, members in groups.items():
    seeds = {run.settings.get('RANDOM_SEED') for run in members}
    if len(seeds) < len(members):
      logs.say(
        f'note: {label} has runs with one and the same seed: their spread says '
        'nothing.'
      )
    last = {run.records[split][-1]['step'] for run in members}
    if len(last) > 1:
      logs.say(
        f'note: {label} has runs that end at different steps '
        f'({", ".join(map(str, sorted(last)))}); drawn as far as all go.'
      )


def curve(members: list[Run], split: str) -> Curve:
  """The loss of the runs of one group."""
  by_step = [{r['step']: r['loss'] for r in m.records[split]} for m in members]
  steps = np.asarray(sorted(set.intersection(*map(set, by_step))))
  if not len(steps):
    raise errors.UserError(
      f'{", ".join(str(m.folder) for m in members)} have no step in common at '
      f"which they have a record of '{split}', so they have no mean: give "
      'them one by one.'
    )
  return Curve(
    steps=steps,
    seconds=np.mean([m.seconds(steps) for m in members], axis=0),
    loss=np.asarray([[losses[s] for s in steps] for losses in by_step]),
  )


def summary(groups: Groups, split: str) -> str:
  """The table: one row a variant, the lowest loss first."""
  rows = []
  for label, members in groups.items():
    found = curve(members, split)
    loss = f'{found.mean[-1]:.4f}'
    if len(members) > 1:
      loss += f' +- {found.deviation[-1]:.4f}'
    sizes = {layout.parameters(m.folder) or 0 for m in members} - {0}
    rate = np.mean(
      [
        np.median([r['tokens_per_second'] for r in m.records['train']])
        for m in members
      ]
    )
    row = (
      label,
      ', '.join(m.settings.get('RANDOM_SEED', '?') for m in members),
      f'{found.steps[-1]:,}',
      ' / '.join(f'{size:,}' for size in sorted(sizes)) or '?',
      loss,
      f'{rate:,.0f}',
    )
    rows.append((found.mean[-1], row))
  rows.sort(key=lambda ranked: ranked[0])
  head = 'held-out loss' if split == 'eval' else 'training loss'
  names = ('variant', 'seeds', 'step', 'parameters', head, 'tokens/s')
  return pages.plain([names, *(row for _, row in rows)]) + (
    '\nloss: nats per target token, mean +- sample standard deviation over '
    'seeds; tokens/s: of inputs and targets without padding, median over time'
  )
