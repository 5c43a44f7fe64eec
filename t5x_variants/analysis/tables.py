"""Tables of what runs reached, next to the papers' numbers.

Rows are variants, columns tasks and their metrics; `_LEGEND` says what a cell
is, and `statistics` what its interval is.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_variants import errors, logs
from t5x_variants.analysis import pages, results, statistics
from t5x_variants.run_dir import layout

PAPERS = pathlib.Path(__file__).with_name('paper_tables.json')
_LEGEND = (
  'Cells: mean ± sample standard deviation over seeds (n seeds); below, the '
  'difference to {}, paired by seed, with its 95 % interval '
  "(Student's t, not corrected for the number of differences)."
)
# One or no number for each column, by row.
Numbers = Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    label: its head.
    key: of `results.Result.values`.
    steps: the runs it is of, by TRAIN_STEPS; None: any.
    mean_of: instead of a key, several whose mean it is, of the seeds that have
      them all.
  """

  label: str
  key: str
  steps: int | None = None
  mean_of: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Table:
  """A table to fill.

  Attributes:
    title: what it is.
    columns: see `Column`.
    baseline: the row that the others are compared with.
    rows: by variant, as `layout.variant` names them, the paper's numbers; none
      in a table of no paper.
    source: where the paper's numbers are; '' where there are none.
    differences: where the paper has no number but its difference to the
      baseline, the same of these.
    spread: by row, or for 'all' rows, the paper's standard deviations.
  """

  title: str
  columns: Sequence[Column]
  baseline: str
  rows: Numbers
  source: str = ''
  differences: Numbers = dataclasses.field(default_factory=dict)
  spread: Numbers = dataclasses.field(default_factory=dict)


def report(
  folders: Sequence[str],
  papers: Sequence[str] = (),
  baseline: str | None = None,
  title: str = 'Runs',
) -> str:
  """The tables of runs, as Markdown.

  Args:
    folders: run directories, or folders below which they are.
    papers: names of tables in paper_tables.json; none for one table of
      whatever the runs have.
    baseline: a row; None for the paper's, or for the first.
    title: of the table of no paper.

  Raises:
    errors.UserError: there is no run, no such table or no such row, or two
      runs are of one variant and seed.
  """
  found = [r for r in map(results.read, results.find(folders)) if r]
  if not found:
    raise errors.UserError('None of the runs was evaluated yet.')
  if any(result.tested for result in found):
    for result in found:
      if not result.tested:
        logs.say(f"note: {result.folder} has no 'test' record yet.")
  tables = [paper_table(name, baseline) for name in papers]
  tables = tables or [own_table(found, baseline, title)]
  return '\n'.join(fill(table, found) for table in tables)


def own_table(
  found: Sequence[results.Result], baseline: str | None, title: str
) -> Table:
  """The table of whatever the runs have."""
  order = {name: place for place, name in enumerate(layout.VARIANTS)}
  rows = sorted(
    {result.row for result in found},
    key=lambda row: (order.get(row.partition(',')[0], len(order)), row),
  )
  keys = {key for result in found for key in result.values}
  # After fine-tuning the loss of all tasks together says little.
  shown = {key for key in keys if '/' in key} or {'loss'} & keys
  columns = [Column(key.replace('/', ' '), key) for key in sorted(shown)]
  baseline = named_row(baseline or rows[0], rows)
  return Table(title, columns, baseline, dict.fromkeys(rows, ()))


def paper_table(name: str, baseline: str | None = None) -> Table:
  """A table of a paper.

  Raises:
    errors.UserError: there is none of that name, or no such row in it.
  """
  known = json.loads(PAPERS.read_text(encoding='utf-8'))
  if name not in known:
    raise errors.UserError(
      f'There is no table {name!r}: --table takes one of {", ".join(known)}.'
    )
  table = known[name]
  table['columns'] = [Column(**column) for column in table['columns']]
  if baseline:
    table['baseline'] = named_row(baseline, table['rows'])
  return Table(**table)


def named_row(name: str, rows: Sequence[str]) -> str:
  """A row by its name, or by that of its file in gin/variants.

  Raises:
    errors.UserError: no row has that name.
  """
  plain = name.lower().replace('_', ' ')
  for row in rows:
    if row.lower() == plain:
      return row
  raise errors.UserError(
    f'There is no row {name!r}: --baseline takes one of {", ".join(rows)}.'
  )


def gather(
  found: Sequence[results.Result], column: Column
) -> dict[str, dict[str, float]]:
  """Of one column, value by seed by row.

  Raises:
    errors.UserError: two runs are of one row and seed.
  """
  if column.mean_of:
    first, *rest = [gather(found, Column(k, k)) for k in column.mean_of]
    return {
      row: {
        seed: float(np.mean([value, *(part[row][seed] for part in rest)]))
        for seed, value in values.items()
        if all(seed in part.get(row, ()) for part in rest)
      }
      for row, values in first.items()
    }
  fitting = [
    result
    for result in found
    if column.key in result.values and column.steps in (None, result.steps)
  ]
  # Where some were tested, the others have not come to their end yet.
  chosen: dict[tuple[str, str], results.Result] = {}
  for result in [r for r in fitting if r.tested] or fitting:
    other = chosen.setdefault((result.row, result.seed), result)
    if other is not result:
      raise errors.UserError(
        f'{other.folder} and {result.folder} are both {result.row} with seed '
        f'{result.seed}, {column.label}: give one of them, or one table each.'
      )
  values: dict[str, dict[str, float]] = {}
  for (row, seed), result in chosen.items():
    values.setdefault(row, {})[seed] = result.values[column.key]
  return values


def fill(table: Table, found: Sequence[results.Result]) -> str:
  """A table as Markdown, and what its cells are."""
  columns = [gather(found, column) for column in table.columns]
  rows = [['', *(column.label for column in table.columns)]]
  for row in table.rows:
    cells = [f'**{row}**']
    for place, values in enumerate(columns):
      loss = results.lower_is_better(table.columns[place].key)
      parts = _measured(values, row, table.baseline, 4 if loss else 2)
      if table.source:
        parts.append(_of_paper(table, row, place))
      cells.append('<br>'.join(parts))
    rows.append(cells)
  if 'all' in table.spread:
    rows.append(['s of the paper', *map(str, table.spread['all'])])
  legend = _LEGEND.format(table.baseline)
  parts = [f'### {table.title}', pages.markdown(rows), legend]
  if table.source:
    parts.insert(1, f'Paper: {table.source}.')
  return '\n\n'.join(parts) + '\n'


def _measured(
  values: Mapping[str, Mapping[str, float]],
  row: str,
  baseline: str,
  digits: int,
) -> list[str]:
  """What was measured of a cell, in lines."""
  own = values.get(row)
  if not own:
    return ['not run']
  numbers = list(own.values())
  parts = [f'{np.mean(numbers):.{digits}f}']
  if len(numbers) > 1:
    parts[0] += f' ± {np.std(numbers, ddof=1):.{digits}f}'
  parts[0] += f' (n {len(numbers)})'
  if row == baseline:
    return parts
  paired = statistics.differences(own, values.get(baseline, {}))
  if not paired:
    return [*parts, f'no seed in common with {baseline}']
  mean = np.mean(paired)
  text = f'{mean:+.{digits}f}'
  if len(paired) > 1:
    half = statistics.half_width(paired)
    text += f' [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]'
  if len(paired) != len(numbers):
    text += f' (n {len(paired)})'
  return [*parts, text]


def _of_paper(table: Table, row: str, place: int) -> str:
  """The paper's number and its difference to the paper's baseline."""

  def of(numbers, row):
    return numbers[row][place] if row in numbers else None

  value, base = of(table.rows, row), of(table.rows, table.baseline)
  change = of(table.differences, row)
  if value is None:
    return f'paper {change:+g}' if change is not None else 'paper: unknown'
  text = f'paper {value:g}'
  if (spread := of(table.spread, row)) is not None:
    text += f' ± {spread:g}'
  if row != table.baseline and base is not None:
    text += f', {value - base:+.4g}'
  return text
