"""What pictures share: their look, and how they are written."""

import pathlib
from typing import Any

from t5x_variants import errors, logs

# Okabe and Ito's colours, told apart by colour-blind readers too, without
# the yellow that is lost on white.
COLOURS = '#0072b2 #d55e00 #009e73 #cc79a7 #000000 #e69f00 #56b4e9'.split()
# Seven colours and four dashes have no common factor: index i of both gives
# 28 lines of which no two are alike, and neighbours differ in both.
DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))

_STYLE: dict[Any, Any] = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'legend.frameon': False,
  'pdf.fonttype': 42,  # text stays text
}


def figure(width: float, height: float):
  """An empty figure, in inches, that no display or global state knows of.

  Raises:
    errors.UserError: matplotlib is not installed.
  """
  try:
    import matplotlib
    from matplotlib import figure as matplotlib_figure
  except ImportError as error:
    raise errors.UserError(
      "Pictures need matplotlib: pip install 't5x-variants[plot]'."
    ) from error
  matplotlib.rcParams.update(_STYLE)
  return matplotlib_figure.Figure((width, height), layout='constrained')


def look(index: int) -> dict[str, object]:
  """The colour, dashes and width of one line of several."""
  return {
    'color': COLOURS[index % len(COLOURS)],
    'linestyle': DASHES[index % len(DASHES)],
    'lw': 1.4,
  }


def check_output(path: str) -> pathlib.Path:
  """The path of a picture to write, refused before any work is done.

  Raises:
    errors.UserError: no picture can be written there.
  """
  output = pathlib.Path(path)
  if not output.parent.is_dir():
    raise errors.UserError(
      f'{path} cannot be written: there is no folder {output.parent}. Make '
      'it, or give another path with -o.'
    )
  kinds = figure(1, 1).canvas.get_supported_filetypes()
  if output.suffix.removeprefix('.').lower() not in kinds:
    raise errors.UserError(
      f'{path} cannot be written: its ending says the kind of picture, one '
      f'of {", ".join(sorted(kinds))}.'
    )
  return output


def save(drawn, path: pathlib.Path) -> None:
  """Writes a figure and says where.

  Raises:
    errors.UserError: it cannot be written.
  """
  try:
    drawn.savefig(path, dpi=200)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written: {errors.reason(error)}.'
    ) from error
  logs.say(f'wrote {path}')
