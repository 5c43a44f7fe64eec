"""What the tools for runs share: arguments, records, figures, errors."""

import argparse
import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable

from t5x_variants import errors, logs
from t5x_variants.run_dir import records

# Okabe and Ito's colours, told apart by colour-blind readers too, without
# the yellow that is lost on white.
COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#000000',
  '#e69f00',
  '#56b4e9',
)
# Seven colours and four dashes have no common factor: index i of both gives
# 28 lines of which no two are alike, and neighbours differ in both.
DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))

_STYLE = {
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
  """An empty figure, in inches, that no display or global state knows of."""
  try:
    import matplotlib
    from matplotlib import figure as matplotlib_figure
  except ImportError as error:
    raise errors.UserError(
      "The plots need matplotlib: pip install 't5x-variants[plot]'."
    ) from error
  matplotlib.rcParams.update(_STYLE)
  return matplotlib_figure.Figure((width, height), layout='constrained')


def check_output(path: str) -> pathlib.Path:
  """The path of a picture to write, refused before any work is done."""
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
  """Writes a figure and says where."""
  try:
    drawn.savefig(path, dpi=200)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written: {errors.reason(error)}.'
    ) from error
  print(f'wrote {path}', file=sys.stderr)


def note(text: str) -> None:
  """Says what a reader of the picture should know, beside the table."""
  print(f'note: {text}', file=sys.stderr)


def table(rows: list[tuple[str, ...]]) -> str:
  """Columns under the first row's names; the first column is text."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      [row[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    ).rstrip()
    for row in rows
  )


class Parser(argparse.ArgumentParser):
  """A tool's arguments; a wrong one is answered by one sentence."""

  def __init__(self, description: str):
    """Takes the tool's docstring, which --help prints as it is."""
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message: str):
    """Raises a `UserError` of argparse's words."""
    given = message.rpartition(' ')[2].partition('=')[0]
    near = difflib.get_close_matches(given, self._option_string_actions, n=1)
    hint = f' Did you mean {near[0]}?' if near and near[0] != given else ''
    raise errors.UserError(
      f'{message[0].upper()}{message[1:]}.{hint} See --help.'
    )


def read(
  run: str | os.PathLike, split: str, needed: Iterable[str] = ()
) -> list[dict]:
  """A run's records of one split, each with the numbers that are needed.

  Raises:
    errors.UserError: the folder is no run directory, or what it has recorded
      is damaged.
  """
  try:
    found = records.read(run, split)
    lines = (pathlib.Path(run) / 'metrics.jsonl').read_bytes().split(b'\n')
    # The last line may be one that a run is just writing.
    written = any(map(bytes.strip, lines[:-1])) and not found
    is_damaged = written and records.last_step(run) is None
    if not is_damaged and all(
      isinstance(r[n], int | float) for r in found for n in needed
    ):
      return found
  except errors.UserError:
    raise
  except (ValueError, TypeError, KeyError):
    pass  # No text, no object, or not what a record has.
  raise errors.UserError(
    f'{run} is damaged: its metrics.jsonl has a line that is no record.'
  )


def run(
  main: Callable[[], None],
  sentence: Callable[[errors.UserError], str] = str,
) -> None:
  """Runs a tool; see `errors.exit_status` for the arguments and the status."""
  logs.quiet()
  sys.exit(errors.exit_status(main, sentence))
