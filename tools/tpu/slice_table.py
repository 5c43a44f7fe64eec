"""Fills the table of docs/tpu.md: which runs were compiled for which slice.

  python tools/tpu/slice_table.py [--cached]

Each row is a precompile command of its own, run in a process of its own, whose
figures are kept below runs/precompile: what was stopped goes on. `--cached`
compiles nothing and writes what is there so far. Needs libtpu and no TPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from t5x_variants import chips, errors  # noqa: E402
from t5x_variants.analysis import pages  # noqa: E402

COMMAND = 'python tools/tpu/slice_table.py'
VARIANTS = ('swiglu', 'rational', 'polynorm', 'relu')
# Models and slices that belong together; settings besides the slice's file.
RUNS = (
  ('t5_1_1_small', 'v5e-8'),
  ('t5_1_1_base', 'v5e-256'),
  ('t5_1_1_base', 'v6e-256'),
  ('t5_1_1_xl', 'v5p-128'),
  ('t5_1_1_xxl', 'v4-512'),
)
COLUMNS = (
  *('model', 'variant', 'slice', 'mesh', 'rows', 'remat', 'parameters'),
  *('optimizer', 'peak', 'of', 'share', 'estimate', 'TFLOP inputs'),
  *('TFLOP targets', 'moved MB'),
)
_TEXT = {'model', 'variant', 'slice', 'mesh', 'remat', 'moved MB'}


class Row(NamedTuple):
  """One run of the table."""

  model: str
  variant: str
  topology: str

  @property
  def arguments(self) -> list[str]:
    """Of the command that compiles it."""
    files = (
      f'models/{self.model}',
      f'variants/{self.variant}',
      f'tpu/{self.topology}',
      'runs/precompile',
    )
    return [
      f'--topology={self.topology}',
      *(f'--gin_file=gin/{file}.gin' for file in files),
      "--gin.PROGRAMS=('train',)",
    ]


def rows() -> list[Row]:
  """The table's rows in its order."""
  return [
    Row(model, variant, topology)
    for model, topology in RUNS
    for variant in VARIANTS
  ]


def fill(compile_missing: bool = True) -> None:
  """Compiles what is missing, prints the table, writes it to docs/tpu.md.

  Raises:
    errors.UserError: a row did not fit.
  """
  cache = ROOT / 'runs' / 'precompile'
  cache.mkdir(parents=True, exist_ok=True)
  records = []
  for row in rows():
    file = cache / f'{row.model}-{row.variant}-{row.topology}.json'
    if not file.exists() and compile_missing:
      _compile(row, file)
    if file.exists():
      records.append((row, json.loads(file.read_text(encoding='utf-8'))))
  text = table(records)
  missing = len(rows()) - len(records)
  if missing:
    text += f'\n\n{missing} of {len(rows())} rows are not compiled yet.'
  print(text)
  pages.fill(ROOT / 'docs' / 'tpu.md', COMMAND, text)


def _compile(row: Row, file: pathlib.Path) -> None:
  """Runs a row's command; its figures appear whole or not at all."""
  part = file.with_suffix('.part')
  command = [sys.executable, '-m', 't5x_variants.precompile', *row.arguments]
  print(f'compiling {" ".join(row)} ...', file=sys.stderr, flush=True)
  done = subprocess.run(
    [*command, f'--record={part}'], cwd=ROOT, stdout=sys.stderr
  )
  if done.returncode:
    raise errors.UserError(
      f'{" ".join(row)} ended with status {done.returncode}; the rest of the '
      'table was not compiled. What was is kept.'
    )
  part.rename(file)


def table(records) -> str:
  """Markdown of (row, record) pairs."""
  rules = ['---' if name in _TEXT else '---:' for name in COLUMNS]
  return pages.markdown([COLUMNS, *(_cells(*pair) for pair in records)], rules)


def _cells(row: Row, record) -> list[str]:
  train = record['programs']['train']

  def gib(size):
    return f'{size / chips.GIB:.2f}'

  per_chip = [
    train['flops'][side] / train['chips'] / 1e12
    for side in ('encoder', 'decoder')
  ]
  data, model = record['mesh']
  sharded = record['parameter_partitioning_dims'] == 2
  return [
    row.model.removeprefix('t5_1_1_'),
    row.variant,
    row.topology,
    f'{data} x {model}{" sharded" * sharded}',
    f'{record["batch_size"]}',
    record['remat_policy'],
    gib(record['params']),
    gib(record['optimizer']),
    gib(train['peak']),
    gib(record['usable']),
    f'{train["peak"] / record["usable"]:.0%}',
    gib(record['estimate']),
    *(f'{one:.2f}' for one in per_chip),
    ', '.join(
      f'{kind} {size / 1e6:,.0f}' for kind, size in train['moved'].items()
    )
    or 'nothing',
  ]


def main() -> None:
  """Reads the command and fills the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cached', action='store_true', help='compile nothing')
  fill(compile_missing=not parser.parse_args().cached)


if __name__ == '__main__':
  sys.exit(errors.exit_status(main))
