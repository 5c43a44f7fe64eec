"""Tables of what runs reached, as Markdown, next to the papers' numbers.

  python tools/report.py runs/low_data/finetune --baseline relu
  python tools/report.py runs/glu --table glu_1 -o table1.md

Given are run directories, or folders below which they lie. Rows are variants,
columns tasks and their metrics; runs with a part frozen by a name, as the arms
of gin/runs/low_data.gin, have rows of their own. A run's number is that of its
'test' record; where no run of a column has one, the best of its 'eval' records
after step 0 (of a loss the lowest, of any other metric the highest). Read are
metrics.jsonl and config.gin, no more; a run on one task is of the task whose
name its folder's folder has, as tools/sweep.py names them.

A cell is the mean over seeds, the sample standard deviation s and the number
of seeds n. Below it stands the difference to the baseline, d = x - x_baseline
taken seed by seed, over the seeds that both have: mean(d), and the interval

  mean(d) -+ t(0.975, n - 1) s(d) / sqrt(n)

of Student's t distribution, which covers the expected difference in 95 % of
repetitions where d is about normal. It is not corrected for how many
differences a table has, and it knows only the variation that the seeds have.
"""

import dataclasses
import json
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence

import figures
import scipy.stats

from t5x_variants import errors
from t5x_variants.run_dir import layout

PAPERS = pathlib.Path(__file__).with_name('paper_tables.json')
CONFIDENCE = 0.95
_NO_METRIC = {
  'step',
  'time',
  'split',
  'z_loss',
  'learning_rate',
  'target_tokens',
  'batches',
}
NOT_RUN = 'not run'
# Of GLUE without WNLI, and of SuperGLUE.
_TASKS = 8


@dataclasses.dataclass(frozen=True)
class Result:
  """What one run reached.

  Attributes:
    folder: the run directory.
    row: the variant, and what was frozen where that has a name.
    seed: RANDOM_SEED.
    steps: TRAIN_STEPS.
    values: number by column, 'loss' or 'TASK/METRIC'.
    tested: whether they are of a 'test' record.
  """

  folder: pathlib.Path
  row: str
  seed: str
  steps: int
  values: Mapping[str, float]
  tested: bool


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    label: its head.
    key: of `Result.values`.
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
    source: where the paper's numbers stand; '' where there are none.
    rows: variants, as `layout.variant` names them.
    columns: see `Column`.
    baseline: the row that the others are compared with.
    paper: by row, a number for each column or None where it is not known.
    differences: where the paper has no number but its difference to the
      baseline, the same of these.
    spread: by row, or for 'all' rows, the paper's standard deviations.
  """

  title: str
  source: str
  rows: Sequence[str]
  columns: Sequence[Column]
  baseline: str
  paper: Mapping[str, Sequence[float | None]]
  differences: Mapping[str, Sequence[float | None]]
  spread: Mapping[str, Sequence[float | None]]


def lower_is_better(key: str) -> bool:
  """Whether the metric of a column is a loss."""
  return key.rpartition('/')[2] in ('loss', 'nats_per_token', 'perplexity')


def find(paths: Sequence[str]) -> list[pathlib.Path]:
  """The run directories among and below the folders.

  Raises:
    errors.UserError: there is none. Of several folders, one without a run is
      left out with a note.
  """
  found, empty = {}, []
  for path in map(pathlib.Path, paths):
    below = sorted(file.parent for file in path.rglob('metrics.jsonl'))
    found |= {folder.resolve(): folder for folder in below}
    if not below:
      empty.append(str(path))
  sentence = (
    f'There is no run directory, with a metrics.jsonl, in {", ".join(empty)}.'
  )
  if not found:
    raise errors.UserError(sentence)
  if empty:
    figures.note(sentence)
  return list(found.values())


def read(folder: pathlib.Path) -> Result | None:
  """What a run reached; None where it was not evaluated yet.

  Raises:
    errors.UserError: config.gin does not say which variant it is.
  """
  settings = layout.settings(folder)
  row = layout.variant(settings)
  frozen = settings.get('FROZEN', '')
  if row and frozen.startswith('%') and frozen != '%FULL':
    row += f', {frozen[1:].lower().replace("_", " ")}'
  if row is None:
    raise errors.UserError(
      f'{folder}: its config.gin sets no ACTIVATION and GATED, so that it is '
      'the run of no variant.'
    )
  tested, evaluated = (
    figures.read(folder, split, ['step']) for split in ('test', 'eval')
  )
  values = best(
    list(map(with_averages, tested[-1:] or [r for r in evaluated if r['step']]))
  )
  if not values:
    figures.note(f'{folder} was not evaluated yet and is left out.')
    return None
  task = folder.resolve().parent.name
  return Result(
    folder,
    row,
    layout.resolved(settings, 'RANDOM_SEED') or '0',
    int(layout.resolved(settings, 'TRAIN_STEPS') or 0),
    {_named(key, task): value for key, value in values.items()},
    bool(tested),
  )


def best(records: Sequence[Mapping]) -> dict[str, float]:
  """The best value of each metric over records; NaN is never the best."""
  found: dict[str, float] = {}
  for record in records:
    for key, value in record.items():
      if key in _NO_METRIC or not isinstance(value, int | float):
        continue
      choose = min if lower_is_better(key) else max
      known = found.get(key, math.nan)
      found[key] = value if math.isnan(known) else choose(known, value)
  return found


def with_averages(record: Mapping) -> dict:
  """A record with the averages of GLUE and SuperGLUE, where it has all of one.

  As T5 has it: the mean over the eight tasks of the mean of a task's metrics,
  MNLI's two development sets being one task.
  """
  record = dict(record)
  for benchmark in ('super_glue', 'glue'):
    scores: dict[str, list[float]] = {}
    for key, value in record.items():
      if key.startswith(f'{benchmark}_'):
        task = re.sub('_(mis)?matched$', '', key.partition('/')[0])
        scores.setdefault(task, []).append(value)
    if len(scores) == _TASKS:
      means = map(statistics.fmean, scores.values())
      record[f'{benchmark}/average'] = statistics.fmean(means)
  return record


def _named(key: str, task: str) -> str:
  """A record's 'task/METRIC' under the task's own name."""
  return f'{task}/{key.removeprefix("task/")}' if key[:5] == 'task/' else key


def gather(results: Sequence[Result], column: Column) -> dict[str, dict]:
  """Of one column, value by seed by row.

  Raises:
    errors.UserError: two runs are of one row and seed.
  """
  if column.mean_of:
    parts = [gather(results, Column(key, key)) for key in column.mean_of]
    return {
      row: means
      for row in parts[0]
      if (means := _means([part.get(row, {}) for part in parts]))
    }
  found: dict[str, dict[str, float]] = {}
  homes: dict[tuple[str, str], pathlib.Path] = {}
  fitting = [
    result
    for result in results
    if column.key in result.values and column.steps in (None, result.steps)
  ]
  # Where some were tested, the others have not come to their end yet.
  tested = [result for result in fitting if result.tested]
  for result in tested or fitting:
    place = result.row, result.seed
    if place in homes:
      raise errors.UserError(
        f'{homes[place]} and {result.folder} are both {result.row} with seed '
        f'{result.seed}, {column.label}: give one of them, or one table each.'
      )
    homes[place] = result.folder
    found.setdefault(result.row, {})[result.seed] = result.values[column.key]
  return found


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The mean over parts, of the seeds that all of them have."""
  seeds = [seed for seed in parts[0] if all(seed in part for part in parts)]
  return {
    seed: statistics.fmean(part[seed] for part in parts) for seed in seeds
  }


@dataclasses.dataclass(frozen=True)
class Summary:
  """Of some numbers: mean, sample standard deviation (NaN of one), count."""

  mean: float
  deviation: float
  count: int

  @classmethod
  def of(cls, values: Sequence[float]) -> 'Summary':
    """Of at least one number."""
    several = len(values) > 1
    return cls(
      statistics.fmean(values),
      statistics.stdev(values) if several else math.nan,
      len(values),
    )

  @property
  def half_width(self) -> float:
    """Half of the interval of the expected value; NaN of one number."""
    if self.count < 2:
      return math.nan
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, self.count - 1)
    return float(quantile) * self.deviation / math.sqrt(self.count)


def difference(
  values: Mapping[str, float], baseline: Mapping[str, float]
) -> Summary | None:
  """Of value minus baseline by seed; None where no seed is in both."""
  both = [values[seed] - baseline[seed] for seed in values if seed in baseline]
  return Summary.of(both) if both else None


def own_table(
  results: Sequence[Result], baseline: str | None, title: str
) -> Table:
  """The table of whatever the runs have."""
  order = {name: place for place, name in enumerate(layout.VARIANTS)}
  rows = sorted(
    {result.row for result in results},
    key=lambda row: (order.get(row.partition(',')[0], len(order)), row),
  )
  keys = {key for result in results for key in result.values}
  # After fine-tuning the loss of all tasks together says little.
  shown = {key for key in keys if '/' in key} or {'loss'} & keys
  columns = [Column(key.replace('/', ' '), key) for key in sorted(shown)]
  baseline = named_row(baseline or rows[0], rows)
  return Table(title, '', rows, columns, baseline, {}, {}, {})


def paper_table(name: str, baseline: str | None = None) -> Table:
  """A table of a paper.

  Raises:
    errors.UserError: there is none of that name, or no such row in it.
  """
  known = json.loads(PAPERS.read_text(encoding='utf-8'))
  if name not in known:
    raise errors.UserError(
      f'--table={name}: there is none; choose of {", ".join(known)}.'
    )
  table = known[name]
  rows = list(table['rows'])
  return Table(
    table['title'],
    table['source'],
    rows,
    [Column(**column) for column in table['columns']],
    named_row(baseline, rows) if baseline else table['baseline'],
    table['rows'],
    table.get('differences', {}),
    table.get('spread', {}),
  )


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
    f'--baseline={name}: no run is of it; there are {", ".join(rows)}.'
  )


def filled(table: Table, results: Sequence[Result]) -> str:
  """A table as Markdown, and what its cells are."""
  found = [gather(results, column) for column in table.columns]
  lines = [f'### {table.title}', '']
  if table.source:
    lines += [f'Paper: {table.source}.', '']
  lines += [
    _line(['', *(column.label for column in table.columns)]),
    _line(['---'] * (len(table.columns) + 1)),
  ]
  for row in table.rows:
    cells = [f'**{row}**']
    for place, values in enumerate(found):
      digits = 4 if lower_is_better(table.columns[place].key) else 2
      parts = _measured(values, row, table.baseline, digits)
      if table.paper:
        parts.append(_of_paper(table, row, place))
      cells.append('<br>'.join(parts))
    lines.append(_line(cells))
  if 'all' in table.spread:
    lines.append(_line(['s of the paper', *map(str, table.spread['all'])]))
  return '\n'.join([*lines, '', legend(table.baseline)]) + '\n'


def _measured(cell, row: str, baseline: str, digits: int) -> list[str]:
  """What was measured of a cell, in lines."""
  if row not in cell:
    return [NOT_RUN]
  summary = Summary.of(list(cell[row].values()))
  spread = f' ± {summary.deviation:.{digits}f}' if summary.count > 1 else ''
  parts = [f'{summary.mean:.{digits}f}{spread} (n {summary.count})']
  if row == baseline:
    return parts
  found = difference(cell[row], cell.get(baseline, {}))
  if found is None:
    return [*parts, f'no seed in common with {baseline}']
  text = f'{found.mean:+.{digits}f}'
  if found.count > 1:
    low, high = found.mean - found.half_width, found.mean + found.half_width
    text += f' [{low:+.{digits}f}, {high:+.{digits}f}]'
  if found.count != summary.count:
    text += f' (n {found.count})'
  return [*parts, text]


def _of_paper(table: Table, row: str, place: int) -> str:
  """The paper's number and its difference to the paper's baseline."""

  def of(numbers, row):
    return numbers.get(row, [None] * len(table.columns))[place]

  value, base = of(table.paper, row), of(table.paper, table.baseline)
  change = of(table.differences, row)
  if value is None:
    return f'paper {change:+g}' if change is not None else 'paper: unknown'
  text = f'paper {value:g}'
  if (spread := of(table.spread, row)) is not None:
    text += f' ± {spread:g}'
  if row != table.baseline and base is not None:
    text += f', {value - base:+.4g}'
  return text


def _line(cells: Sequence[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def legend(baseline: str) -> str:
  """What the cells are, in words."""
  return (
    'Cells: mean ± sample standard deviation over seeds (n seeds); below, the '
    f'difference to {baseline}, paired by seed, with its 95 % interval '
    "(Student's t, not corrected for the number of differences)."
  )


def write(path: str, text: str) -> None:
  """Writes the tables.

  Raises:
    errors.UserError: the file cannot be written.
  """
  try:
    pathlib.Path(path).write_text(text, encoding='utf-8')
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written: {errors.reason(error)}.'
    ) from error


def main(arguments: list[str] | None = None) -> None:
  """Reads the runs and prints or writes the tables."""
  parser = figures.Parser(__doc__)
  parser.add_argument(
    'runs', nargs='+', metavar='RUN', help='run directories, or folders of them'
  )
  parser.add_argument('--baseline', help='a variant; default: the first row')
  parser.add_argument(
    '--table',
    action='append',
    default=[],
    help='one of the papers: see tools/paper_tables.json; several times for '
    'several; without it, the table of what the runs have',
  )
  parser.add_argument('--title', default='Runs', help='of that table')
  parser.add_argument('-o', metavar='FILE', help='default: standard output')
  options = parser.parse_args(arguments)
  results = [result for result in map(read, find(options.runs)) if result]
  if not results:
    raise errors.UserError('None of the runs was evaluated yet.')
  if any(result.tested for result in results):
    for result in results:
      if not result.tested:
        figures.note(f"{result.folder} has no 'test' record yet.")
  tables = [paper_table(name, options.baseline) for name in options.table]
  tables = tables or [own_table(results, options.baseline, options.title)]
  text = '\n'.join(filled(table, results) for table in tables)
  if options.o:
    write(options.o, text)
  else:
    print(text, end='')


if __name__ == '__main__':
  figures.run(main)
