"""tools/tpu/slice_table.py: the rows of docs/tpu.md, and that it goes on."""

import json
import pathlib

import pytest
import slice_table

from t5x_variants import errors
from t5x_variants.analysis import pages

ROOT = pathlib.Path(__file__).parents[2]
BEGIN = pages.begin(slice_table.COMMAND)
RECORD = {
  'mesh': [256, 1],
  'parameter_partitioning_dims': 1,
  'batch_size': 2048,
  'remat_policy': 'minimal',
  'usable': 16 * 2**30,
  'estimate': 5 * 2**30,
  'params': 2**30,
  'optimizer': 2**20,
  'programs': {
    'train': {
      'chips': 256,
      'flops': {'encoder': 256e12, 'decoder': 128e12},
      'peak': 4 * 2**30,
      'moved': {'all-reduce': 600_000_000},
    }
  },
}


def test_the_table_has_a_row_for_each_record():
  rows = slice_table.rows()
  assert len(rows) == len(set(rows)) >= 16
  for row in rows:
    for flag in row.arguments:
      if flag.startswith('--gin_file='):
        assert (ROOT / flag.removeprefix('--gin_file=')).is_file()
  lines = slice_table.table([(rows[4], RECORD)]).splitlines()
  cells = [cell.strip() for cell in lines[2].split('|')[1:-1]]
  assert len(lines) == 3 and len(cells) == len(slice_table.COLUMNS)
  assert cells[:4] == ['base', 'swiglu', 'v5e-256', '256 x 1']
  assert '25%' in cells and 'all-reduce 600' in cells


def test_the_committed_page_has_its_marks_and_rows_that_fit():
  page = (ROOT / 'docs' / 'tpu.md').read_text(encoding='utf-8')
  table = page.split(BEGIN)[1].split(pages.END)[0]
  lines = [line for line in table.splitlines() if line.startswith('| ')]
  assert len(lines) > 2
  for line in lines[2:]:
    cells = [cell.strip() for cell in line.split('|')[1:-1]]
    named = dict(zip(slice_table.COLUMNS, cells, strict=True))
    assert float(named['peak']) < float(named['of'])


def test_a_stopped_table_goes_on(tmp_path, monkeypatch, capsys):
  """Rows that are there are not compiled again."""
  (tmp_path / 'docs').mkdir()
  page = tmp_path / 'docs' / 'tpu.md'
  page.write_text(f'{BEGIN}\n{pages.END}\n')
  monkeypatch.setattr(slice_table, 'ROOT', tmp_path)
  compiled, last = [], 3

  def compile_row(row, file):
    if len(compiled) == last:
      raise errors.UserError('stopped')
    compiled.append(row)
    file.write_text(json.dumps(RECORD))

  monkeypatch.setattr(slice_table, '_compile', compile_row)
  with pytest.raises(errors.UserError):
    slice_table.fill()
  slice_table.fill(compile_missing=False)
  assert page.read_text().count('\n| ') == 3 + 2
  rows = slice_table.rows()
  words = f'{len(rows) - 3} of {len(rows)} rows are not compiled yet.'
  assert words in page.read_text() and words in capsys.readouterr().out
  last = len(rows)
  slice_table.fill()
  assert compiled == rows
