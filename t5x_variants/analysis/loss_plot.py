"""The picture of losses: against steps, against time, and where they end."""

import pathlib
from collections.abc import Sequence

import numpy as np

from t5x_variants.analysis import curves, plots

_UNITS = (
  ('seconds', 1.0, 300.0),
  ('minutes', 60.0, 3 * 3600.0),
  ('hours', 3600.0, 4 * 86400.0),
  ('days', 86400.0, np.inf),
)


def plot(
  folders: Sequence[str],
  output: pathlib.Path,
  *,
  with_training: bool = False,
  whole: bool = False,
):
  """Prints the table of runs, writes their picture, and returns it.

  Args:
    folders: run directories, or folders below which they are.
    output: see `plots.check_output`.
    with_training: whether the training loss is drawn too.
    whole: whether the whole range of losses is drawn, and not only that after
      the first quarter.

  Raises:
    errors.UserError: none of them can be drawn.
  """
  found = curves.read(folders)
  split = curves.split_of(found)
  groups = curves.group(found)
  curves.note_differences(groups, split)
  print(curves.summary(groups, split))
  drawn = draw(groups, split, with_training=with_training, whole=whole)
  plots.save(drawn, output)
  return drawn


def draw(
  groups: curves.Groups,
  split: str,
  *,
  with_training: bool = False,
  whole: bool = False,
):
  """The figure: loss against steps, against time, and where it ends."""
  drawn = plots.figure(10.5, max(3.3, 0.21 * len(groups) + 1.0))
  *axes, last = drawn.subplots(1, 3, width_ratios=(1, 1, 0.6))
  axes[1].sharey(axes[0])
  axes[1].tick_params(labelleft=False)
  found = {label: curves.curve(m, split) for label, m in groups.items()}
  unit, scale = _unit(max(c.seconds[-1] for c in found.values()))
  looks = dict(zip(groups, map(plots.look, range(len(groups))), strict=True))
  for label, members in groups.items():
    if with_training and split == 'eval':
      pale = {'color': looks[label]['color'], 'lw': 0.6, 'alpha': 0.3}
      c = curves.curve(members, 'train')
      for ax, x in zip(axes, (c.steps, c.seconds / scale), strict=True):
        ax.plot(x, c.mean, zorder=1, **pale)
    c = found[label]
    marker = 'o' if len(c.steps) <= 40 and len(groups) <= 6 else ''
    for ax, x in zip(axes, (c.steps, c.seconds / scale), strict=True):
      ax.plot(x, c.mean, **looks[label], label=label, marker=marker, ms=3)
      if len(members) > 1:
        low, high = c.mean - c.deviation, c.mean + c.deviation
        color = looks[label]['color']
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
  if not whole:
    axes[0].set_ylim(*_limits(list(found.values())))
  kind = 'held-out' if split == 'eval' else 'training'
  also = '\n(pale: training loss)' if with_training else ''
  axes[0].set_ylabel(f'{kind} loss (nats per target token){also}')
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
  _draw_last(last, found, looks, kind)
  return drawn


def _draw_last(ax, found: dict[str, curves.Curve], looks, kind: str) -> None:
  """The legend: each line in its look, with the loss it ends at on it.

  Where many lines end close together, only this tells them apart.
  """
  order = sorted(found, key=lambda label: found[label].mean[-1])
  for row, label in enumerate(order):
    c, look = found[label], looks[label]
    end, spread = c.mean[-1], c.deviation[-1]
    ax.axhline(row, **look)
    ax.plot(end, row, 'o', ms=5.5, color=look['color'])
    if len(c.loss) > 1:
      box = {'height': 0.6, 'color': look['color'], 'alpha': 0.3}
      ax.barh(row, 2 * spread, left=end - spread, **box)
      circles = {'ms': 3, 'mfc': 'white', 'mec': '0.2', 'mew': 0.6}
      ax.plot(c.loss[:, -1], [row] * len(c.loss), 'o', **circles)
  ax.set_ylim(max(len(order), 6) - 0.5, -0.5)
  ax.set_yticks(
    range(len(order)),
    [f'{label}  {found[label].mean[-1]:.3f}' for label in order],
  )
  ax.yaxis.tick_right()
  ax.tick_params(axis='y', length=0)
  ax.spines['left'].set_visible(False)
  ax.use_sticky_edges = False
  ax.margins(x=0.12)
  ax.locator_params(axis='x', nbins=4)
  several = any(len(c.loss) > 1 for c in found.values())
  legend = '\ncircles: seeds; box and band: \u00b1 1 s.d.' if several else ''
  ax.set_xlabel(f'last {kind} loss{legend}')


def _limits(found: list[curves.Curve]) -> tuple[float, float]:
  """Of the loss after the first quarter of each curve, with a margin.

  The first drop, from several nats, would leave the differences between
  variants no room.
  """
  begun = [c for c in found if c.steps[-1] > 0] or found
  late = [c.loss[:, c.steps >= 0.25 * c.steps[-1]].ravel() for c in begun]
  low, high = np.quantile(np.concatenate(late), [0, 1])
  margin = 0.05 * (high - low) or 0.05
  return low - margin, high + margin


def _unit(seconds: float) -> tuple[str, float]:
  return next((n, scale) for n, scale, limit in _UNITS if seconds < limit)
