"""Draws the loss of runs against steps and against training time.

  python tools/plot_runs.py runs/relu runs/swiglu* runs/rational* -o loss.png

One line for each variant: the mean held-out loss over its runs, which differ
in RANDOM_SEED, in a band of one standard deviation to either side. Runs that
differ in any other setting get lines of their own, and the setting is named.
A table of the last losses goes to stdout. Read are config.gin, metrics.jsonl
and model-info.txt of each run directory; runs that are still going on may be
drawn too.

Training time is the steps' own, seconds_per_step times steps: compilation,
evaluation, checkpoints and the hours between a stop and a restart are not in
it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import figures
import numpy as np

from t5x_variants import errors
from t5x_variants.run_dir import layout

# Settings that change what is written down, not what is learned. Runs of one
# variant may differ in them.
_INDIFFERENT = {
  'RANDOM_SEED',
  'MODEL_DIR',
  'LOG_PERIOD',
  'EVAL_PERIOD',
  'CHECKPOINT_PERIOD',
  'KEEP_CHECKPOINTS',
  'KEEP_PERIOD',
  'PROFILE_STEPS',
}
# Numbers that records have, see `run_dir.records`.
_OF_ALL = ('step', 'loss')
_OF_TRAINING = (*_OF_ALL, 'seconds_per_step', 'tokens_per_second')
_UNITS = (
  ('seconds', 1.0, 300.0),
  ('minutes', 60.0, 3 * 3600.0),
  ('hours', 3600.0, 4 * 86400.0),
  ('days', 86400.0, float('inf')),
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory.

  Attributes:
    folder: the run directory.
    settings: see `layout.settings`.
    train: its training records, at least one.
    held_out: its evaluations.
  """

  folder: pathlib.Path
  settings: dict[str, str]
  train: list[dict]
  held_out: list[dict]

  def records(self, split: str) -> list[dict]:
    """The records of 'train' or 'eval'."""
    return self.train if split == 'train' else self.held_out

  def seconds(self, steps: np.ndarray) -> np.ndarray:
    """Training time at each step, from how long the steps took."""
    at = np.asarray([0] + [r['step'] for r in self.train], float)
    rate = np.asarray([r['seconds_per_step'] for r in self.train])
    total = np.concatenate([[0.0], np.cumsum(rate * np.diff(at))])
    beyond = np.maximum(steps - at[-1], 0.0) * rate[-1]
    return np.interp(steps, at, total) + beyond


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
    if len(self.loss) == 1:
      return np.zeros(len(self.steps))
    return self.loss.std(0, ddof=1)


def read(folders: Sequence[str]) -> list[Run]:
  """Reads run directories; a note tells which are left out, and why.

  Raises:
    errors.UserError: nothing is left.
  """
  found, others, notes = [], [], []
  for folder in dict.fromkeys(folders):
    if not (pathlib.Path(folder) / 'metrics.jsonl').exists():
      others.append(folder)
      continue
    try:
      train = figures.read(folder, 'train', _OF_TRAINING)
      held_out = figures.read(folder, 'eval', _OF_ALL)
      settings = layout.settings(folder)
    except errors.UserError as error:
      notes.append(str(error))
      continue
    except UnicodeDecodeError:
      notes.append(f'{folder} is damaged: its config.gin is no text.')
      continue
    if train:
      found.append(Run(pathlib.Path(folder), settings, train, held_out))
    else:
      notes.append(
        f'{folder} has no training record yet; one is written every '
        'LOG_PERIOD steps.'
      )
  if others:
    one = 'is no run directory, for it has'
    several = 'are no run directories, for they have'
    which = several if len(others) > 1 else one
    notes.insert(0, f'{", ".join(others)} {which} no metrics.jsonl.')
  if not found:
    raise errors.UserError(' '.join(notes))
  for text in notes:
    figures.note(f'left out: {text}')
  return found


def group(found: list[Run]) -> dict[str, list[Run]]:
  """Runs that differ in nothing but the seed, by label, in a fixed order."""
  alike: dict[object, list[Run]] = {}
  for run in found:
    key = frozenset(_telling(run).items()) or str(run.folder)
    alike.setdefault(key, []).append(run)
  by_name: dict[str, list[list[Run]]] = {}
  for members in alike.values():
    by_name.setdefault(_name(members[0]), []).append(members)
  labelled = {
    label: members
    for name, groups in by_name.items()
    for label, members in zip(_labels(name, groups), groups, strict=True)
  }
  order = {name: i for i, name in enumerate(layout.VARIANTS)}

  def place(label):
    name = _name(labelled[label][0])
    return order.get(name, len(order)), label

  return {label: labelled[label] for label in sorted(labelled, key=place)}


def _name(run: Run) -> str:
  return layout.variant(run.settings) or run.folder.resolve().name


def _telling(run: Run) -> dict[str, str]:
  return {k: v for k, v in run.settings.items() if k not in _INDIFFERENT}


def _labels(name: str, groups: list[list[Run]]) -> list[str]:
  """The variant's name, and what tells groups of one name apart."""
  if len(groups) == 1:
    return [name]
  told = [_telling(members[0]) for members in groups]
  differ = _differing(told)
  if not 0 < len(differ) <= 3:
    return [f'{name} ({members[0].folder})' for members in groups]
  values = [
    ', '.join(f'{_short(k)} {t.get(k, "unset")}' for k in differ) for t in told
  ]
  return [f'{name} ({text})' for text in values]


def _differing(told: list[dict[str, str]]) -> list[str]:
  """Names of the settings that are not the same in all."""
  names = sorted(set().union(*told))
  return [n for n in names if len({t.get(n) for t in told}) > 1]


def _short(name: str) -> str:
  return name.rpartition('.')[2]


def curve(members: list[Run], split: str) -> Curve:
  """The loss of the runs of one group."""
  by_step = [{r['step']: r['loss'] for r in m.records(split)} for m in members]
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


def summary(groups: dict[str, list[Run]], split: str) -> str:
  """The table: one row a variant, the lowest loss first."""
  head = 'held-out loss' if split == 'eval' else 'training loss'
  rows = []
  for label, members in groups.items():
    drawn = curve(members, split)
    loss = f'{drawn.mean[-1]:.4f}'
    if len(members) > 1:
      loss += f' +- {drawn.deviation[-1]:.4f}'
    sizes = {layout.parameters(m.folder) for m in members} - {None}
    rate = np.mean(
      [np.median([r['tokens_per_second'] for r in m.train]) for m in members]
    )
    row = (
      label,
      ', '.join(m.settings.get('RANDOM_SEED', '?') for m in members),
      f'{drawn.steps[-1]:,}',
      ' / '.join(f'{size:,}' for size in sorted(sizes)) or '?',
      loss,
      f'{rate:,.0f}',
    )
    rows.append((drawn.mean[-1], row))
  rows.sort(key=lambda ranked: ranked[0])
  names = ('variant', 'seeds', 'step', 'parameters', head, 'tokens/s')
  return figures.table([names, *(row for _, row in rows)]) + (
    '\nloss: nats per target token, mean +- sample standard deviation over '
    'seeds; tokens/s: of inputs and targets without padding, median over time'
  )


def draw(
  groups: dict[str, list[Run]],
  split: str,
  *,
  with_training: bool = False,
  whole: bool = False,
):
  """The figure: loss against steps, against time, and where it ends."""
  drawn = figures.figure(10.5, max(3.3, 0.21 * len(groups) + 1.0))
  *axes, last = drawn.subplots(1, 3, width_ratios=(1, 1, 0.6))
  axes[1].sharey(axes[0])
  axes[1].tick_params(labelleft=False)
  curves = {label: curve(m, split) for label, m in groups.items()}
  unit, scale = _unit(max(c.seconds[-1] for c in curves.values()))
  looks = {label: _look(index) for index, label in enumerate(groups)}
  for label, members in groups.items():
    color = looks[label]['color']
    if with_training and split == 'eval':
      c = curve(members, 'train')
      for ax, x in zip(axes, (c.steps, c.seconds / scale), strict=True):
        ax.plot(x, c.mean, color=color, lw=0.6, alpha=0.3, zorder=1)
    c = curves[label]
    few = len(c.steps) <= 40 and len(groups) <= 6
    for ax, x in zip(axes, (c.steps, c.seconds / scale), strict=True):
      ax.plot(
        x, c.mean, **looks[label], label=label, marker='o' if few else '', ms=3
      )
      if len(members) > 1:
        low, high = c.mean - c.deviation, c.mean + c.deviation
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
  if not whole:
    axes[0].set_ylim(*_limits(list(curves.values())))
  kind = 'held-out' if split == 'eval' else 'training'
  pale = '\n(pale: training loss)' if with_training else ''
  axes[0].set_ylabel(f'{kind} loss (nats per target token){pale}')
  axes[0].set_xlabel('training steps')
  axes[0].xaxis.set_major_formatter('{x:,.0f}')
  axes[0].locator_params(axis='x', nbins=5)
  axes[1].set_xlabel(
    f'training time ({unit})\nwithout compilation and evaluation'
  )
  for ax in axes:
    ax.set_xlim(left=0)
    ax.grid(color='0.92', lw=0.6)
    ax.set_axisbelow(True)
  _draw_last(last, curves, looks, kind)
  return drawn


def _look(index: int) -> dict[str, object]:
  return {
    'color': figures.COLOURS[index % len(figures.COLOURS)],
    'linestyle': figures.DASHES[index % len(figures.DASHES)],
    'lw': 1.4,
  }


def _draw_last(ax, curves: dict[str, Curve], looks, kind: str) -> None:
  """The legend: each line in its look, with the loss it ends at on it.

  Where many lines end close together, only this tells them apart.
  """
  order = sorted(curves, key=lambda label: curves[label].mean[-1])
  for row, label in enumerate(order):
    c, look = curves[label], looks[label]
    ax.axhline(row, **look)
    if len(c.loss) > 1:
      ax.barh(
        row,
        2 * c.deviation[-1],
        left=c.mean[-1] - c.deviation[-1],
        height=0.6,
        color=look['color'],
        alpha=0.3,
      )
    ax.plot(c.mean[-1], row, 'o', ms=5.5, color=look['color'])
    if len(c.loss) > 1:
      ends = c.loss[:, -1]
      ax.plot(
        ends, [row] * len(ends), 'o', ms=3, mfc='white', mec='0.2', mew=0.6
      )
  ax.set_ylim(max(len(order), 6) - 0.5, -0.5)
  ax.set_yticks(
    range(len(order)),
    [f'{label}  {curves[label].mean[-1]:.3f}' for label in order],
  )
  ax.yaxis.tick_right()
  ax.tick_params(axis='y', length=0)
  ax.spines['left'].set_visible(False)
  ax.use_sticky_edges = False
  ax.margins(x=0.12)
  ax.locator_params(axis='x', nbins=4)
  several = any(len(c.loss) > 1 for c in curves.values())
  ax.set_xlabel(
    f'last {kind} loss'
    + ('\ncircles: seeds; box and band: \u00b1 1 s.d.' if several else '')
  )


def _limits(curves: list[Curve]) -> tuple[float, float]:
  """Of the loss after the first quarter of each curve, with a margin.

  The first drop, from several nats, would leave the differences between
  variants no room.
  """
  begun = [c for c in curves if c.steps[-1] > 0] or curves
  late = [c.loss[:, c.steps >= 0.25 * c.steps[-1]] for c in begun]
  low = min(float(values.min()) for values in late)
  high = max(float(values.max()) for values in late)
  margin = 0.05 * (high - low) or 0.05
  return low - margin, high + margin


def _unit(seconds: float) -> tuple[str, float]:
  return next((n, scale) for n, scale, limit in _UNITS if seconds < limit)


def _say_what_differs(groups: dict[str, list[Run]], split: str) -> None:
  """Notes what makes lines less comparable than they look."""
  every = [m for members in groups.values() for m in members]
  told = [_telling(m) for m in every if m.settings]
  differ = [
    f'{n} ({", ".join(sorted({t.get(n, "unset") for t in told}))})'
    for n in _differing(told or [{}])
    if n != 'GATED' and not re.match('ACTIVATION(/|$)', n)
  ]
  if differ:
    figures.note(
      f'the runs differ in more than the variant: {"; ".join(differ)}.'
    )
  for label, members in groups.items():
    seeds = [m.settings.get('RANDOM_SEED') for m in members]
    if len(set(seeds)) < len(seeds):
      figures.note(
        f'{label} has runs with one and the same seed: their spread says '
        'nothing.'
      )
    last = {m.records(split)[-1]['step'] for m in members}
    if len(last) > 1:
      figures.note(
        f'{label} has runs that end at different steps '
        f'({", ".join(map(str, sorted(last)))}); drawn as far as all go.'
      )


def _split(found: list[Run]) -> str:
  """'eval', or 'train' when a run was never evaluated."""
  missing = [str(run.folder) for run in found if not run.held_out]
  if not missing:
    return 'eval'
  figures.note(
    f'{", ".join(missing)}: no held-out loss, so training loss is drawn.'
  )
  return 'train'


def main(arguments: list[str] | None = None):
  """Reads the runs, prints the table, writes the picture; returns it."""
  parser = figures.Parser(__doc__)
  parser.add_argument('runs', nargs='+', metavar='RUN', help='a run directory')
  parser.add_argument(
    '-o',
    default='loss.png',
    metavar='FILE',
    help='.png, .pdf, .svg ...; default: %(default)s',
  )
  parser.add_argument(
    '--train', action='store_true', help='training loss too, thin and pale'
  )
  parser.add_argument(
    '--whole',
    action='store_true',
    help='the whole range of losses; without it, that after the first quarter',
  )
  options = parser.parse_args(arguments)
  output = figures.check_output(options.o)
  found = read(options.runs)
  split = _split(found)
  groups = group(found)
  _say_what_differs(groups, split)
  print(summary(groups, split))
  drawn = draw(groups, split, with_training=options.train, whole=options.whole)
  figures.save(drawn, output)
  return drawn


if __name__ == '__main__':
  figures.run(main)
