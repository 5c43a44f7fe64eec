"""The precompile command: its errors here, its compiler where libtpu is."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from t5x_variants import errors
from t5x_variants.tpu import report, slice_table

ROOT = pathlib.Path(__file__).parents[2]
FILES = (
  'gin/models/tiny.gin',
  'gin/variants/rational.gin',
  'gin/runs/precompile.gin',
)

compiler = pytest.mark.tpu_compiler
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the TPU compiler needs libtpu: bash tools/test.sh --tpu',
)


def precompile(*arguments, files=FILES):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      't5x_variants.precompile',
      *(f'--gin_file={file}' for file in files),
      *arguments,
    ],
    cwd=ROOT,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    capture_output=True,
    text=True,
  )


SMALL = (
  '--gin.SCAN_LAYERS=True',
  '--gin.BATCH_SIZE=16',
  '--gin.NUM_MICROBATCHES=1',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
)


@compiler
@needs_libtpu
@pytest.mark.parametrize('topology', ['v5e-4', 'v5p-8', 'v6e-4', '7x-8'])
def test_a_scanned_step_compiles_for(topology, tmp_path):
  """Over a mesh with both axes; the figures are those of its sizes."""
  result = precompile(
    f'--topology={topology}',
    *SMALL,
    '--gin.MODEL_AXIS_SIZE=2',
    "--gin.PROGRAMS=('train',)",
    f'--record={tmp_path / "record.json"}',
  )
  assert result.returncode == 0, result.stderr[-4000:]
  record = json.loads((tmp_path / 'record.json').read_text())
  train = record['programs']['train']
  devices = 8 if topology == '7x-8' else 4
  assert record['mesh'] == [devices // 2, 2]
  # Most parameters are split in two; the state is there all the time.
  assert record['count'] * 2 < record['params'] < record['count'] * 2.1
  state = record['params'] + record['optimizer']
  assert state < train['peak'] < record['usable']
  assert train['peak'] < 2 * record['estimate']
  # Every gradient is summed over `data`, in bfloat16 or float32.
  assert train['moved']['all-reduce'] > record['params'] / 2
  assert train['unknown_loops'] == 0


@compiler
@needs_libtpu
def test_what_does_not_fit_names_a_cure_that_fits():
  arguments = (
    '--topology=v5e-4',
    '--gin.SCAN_LAYERS=True',
    '--gin.BATCH_SIZE=65536',
    "--gin.PROGRAMS=('train',)",
  )
  begun = time.monotonic()
  result = precompile(*arguments)
  seconds = time.monotonic() - begun
  assert result.returncode == 1, result.stderr[-4000:]
  assert 'DOES NOT FIT' in result.stdout
  # Alone it takes six CPU seconds; a busy machine may need more time.
  assert seconds < 200
  flags = re.search('Nearest cure.*: add (.*)', result.stdout)[1]
  cured = precompile(*arguments, *shlex.split(flags))
  assert cured.returncode == 0, cured.stdout + cured.stderr[-4000:]


def record(**changes):
  train = {
    'program': 'train',
    'usable': 16 * 2**30,
    'chips': 256,
    'flops': {'encoder': 256e12, 'decoder': 128e12},
    'peak': 4 * 2**30,
    'moved': {'all-reduce': 600_000_000},
    'unknown_loops': 0,
    'lower_seconds': 2.0,
    'compile_seconds': 100.0,
  }
  return {
    'topology': 'v5e-256',
    'shape': '16x16',
    'chips': 256,
    'devices_per_chip': 1,
    'mesh': [256, 1],
    'parameter_partitioning_dims': 1,
    'batch_size': 2048,
    'lengths': [512, 114],
    'num_microbatches': 1,
    'remat_policy': 'minimal',
    'usable': 16 * 2**30,
    'estimate': 5 * 2**30,
    'count': 250_000_000,
    'params': 2**30,
    'optimizer': 2**20,
    'programs': {'train': train},
  } | changes


def test_the_report_says_what_was_found():
  found = record()
  text = '\n'.join(report.head_lines(found))
  assert '250,000,000 in all' in text and 'data 256 x model 1' in text
  text = '\n'.join(report.program_lines(found['programs']['train']))
  assert '4.000 GiB' in text and '(25%)' in text
  # Of one chip of 256.
  assert '1.5' in text and '1 for input tokens, 0.5 for targets' in text
  assert 'all-reduce' in text and '600.00 MB' in text


def test_the_table_has_a_row_for_each_record(tmp_path):
  rows = slice_table.rows()
  assert len(rows) == len(set(rows)) >= 16
  for model, topology in slice_table.RUNS:
    assert (ROOT / f'gin/models/{model}.gin').is_file()
    assert (ROOT / f'gin/tpu/{topology}.gin').is_file()
  for variant in slice_table.VARIANTS:
    assert (ROOT / f'gin/variants/{variant}.gin').is_file()
  text = slice_table.table([(rows[4], record())])
  lines = text.splitlines()
  cells = [cell.strip() for cell in lines[2].split('|')[1:-1]]
  assert len(lines) == 3 and len(cells) == len(slice_table.COLUMNS)
  assert cells[:4] == ['base', 'swiglu', 'v5e-256', '256 x 1']
  assert '25%' in cells and 'all-reduce 600' in cells


def test_the_page_keeps_all_but_its_table():
  begin, end = slice_table.BEGIN, slice_table.END
  page = f'before\n{begin}\nold\n{end}\nafter\n'
  new = slice_table.replaced(page, '| a |')
  assert new == f'before\n{begin}\n\n| a |\n\n{end}\nafter\n'
  assert slice_table.replaced(new, '| a |') == new
  with pytest.raises(errors.UserError, match='once each'):
    slice_table.replaced('no marks', '| a |')


def test_the_committed_page_has_its_marks_and_rows_that_fit():
  page = (ROOT / 'docs' / 'tpu.md').read_text(encoding='utf-8')
  table = page.split(slice_table.BEGIN)[1].split(slice_table.END)[0]
  lines = [line for line in table.splitlines() if line.startswith('| ')]
  assert len(lines) > 2
  for line in lines[2:]:
    cells = [cell.strip() for cell in line.split('|')[1:-1]]
    named = dict(zip((n for n, _ in slice_table.COLUMNS), cells, strict=True))
    assert float(named['peak']) < float(named['of'])


def test_a_stopped_table_goes_on(tmp_path, monkeypatch, capsys):
  """Rows that are there are not compiled again."""
  (tmp_path / 'docs').mkdir()
  page = tmp_path / 'docs' / 'tpu.md'
  page.write_text(f'{slice_table.BEGIN}\n{slice_table.END}\n')
  monkeypatch.setattr(
    slice_table.gin_utils, 'gin_folder', lambda: tmp_path / 'gin'
  )
  compiled = []

  def compile_row(row, file):
    if len(compiled) == 3:
      raise errors.UserError('stopped')
    compiled.append(row)
    file.write_text(json.dumps(record()))

  monkeypatch.setattr(slice_table, '_compile', compile_row)
  with pytest.raises(errors.UserError):
    slice_table.fill()
  slice_table.fill(compile_missing=False)
  assert page.read_text().count('\n| ') == 3 + 2
  rest = len(slice_table.rows()) - 3
  said = f'{rest} of {rest + 3} rows are not compiled yet.'
  assert said in page.read_text() and said in capsys.readouterr().out
  first, compiled[:] = list(compiled), []
  monkeypatch.setattr(
    slice_table,
    '_compile',
    lambda row, file: compiled.append(row) or file.write_text('{}'),
  )
  monkeypatch.setattr(slice_table, 'table', lambda records: '')
  slice_table.fill()
  assert compiled == slice_table.rows()[3:] and first == slice_table.rows()[:3]
