"""The kernels' static figures: how they are counted, and what they choose."""

import json
import pathlib

import ffn_forms
import ffn_report
import pytest
import tpu_programs

from t5x_variants.analysis import pages
from t5x_variants.kernels import dispatch

ROOT = pathlib.Path(__file__).parents[2]
HLO = """HloModule jit_block

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %near = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy(%x)
  %double.1 = bf16[8,128]{1,0} fusion(%near, %x, %x), kind=kLoop, calls=%f
  ROOT %other.2 = f32[8,128]{1,0} fusion(%double.1), kind=kLoop, calls=%g
}
"""
MATMUL = '{ %9 = vmatmul.mubr.bf16.gmra.mxu0 %v1 }'


def bundles(*bodies):
  return '\n'.join(f'  {hex(at)}   :  {b}' for at, b in enumerate(bodies))


def test_bytes_are_those_in_hbm_each_once():
  array = 8 * 128 * 2
  found = {n: b for n, *_, b in tpu_programs.instruction_bytes(HLO)}
  assert found == {'near': array, 'double.1': 2 * array, 'other.2': 3 * array}


def test_a_busy_unit_is_waited_for():
  clock = tpu_programs.Clock(8, 100, 1)
  # The second waits for the first, and each walk for the walk before.
  assert tpu_programs.bundle_cycles(bundles(MATMUL, MATMUL), clock) == (
    16,
    16,
    16,
  )
  other = MATMUL.replace('mxu0', 'mxu1')
  low, _, busy = tpu_programs.bundle_cycles(bundles(MATMUL, other, '{}'), clock)
  assert (low, busy) == (8, 16)


def test_a_loop_counts_its_windows_and_a_skipped_part_apart():
  clock = tpu_programs.Clock(8, 100, 1)
  skipped = ['{ %5 = sbr.rel (%p1) target = $region7 }', *['{}'] * 300]
  body = ['{ iteration_bounds: (3, 2) } /* Start region 1 */', *skipped]
  body += ['{ } /* Start/End empty region 7 */', *['{}'] * 400]
  text = bundles('{}', *body, '{ %6 = sbr.rel (!%p2) target = $region1 }')
  low, high, _ = tpu_programs.bundle_cycles(text, clock)
  assert high == 6 * (len(body) + 1) + 1
  assert low == 6 * (len(body) + 1 - 300) + 300 + 1


def test_an_instruction_takes_its_cycles_or_its_bytes(tmp_path):
  (tmp_path / '17-double.1-01-final_bundles.txt').write_text(
    bundles(*['{}'] * 50)
  )
  cost = tpu_programs.cost(HLO, tmp_path, 'v6e')
  array = 8 * 128 * 2
  assert cost.bytes == 6 * array
  assert cost.low == pytest.approx(50 + 4 * array / 937)
  assert not list(tmp_path.iterdir())
  assert tpu_programs.cost(HLO, tmp_path, '7x').low is None


def record(form, low, high, vmem=None):
  forward = tpu_programs.Cost(10**9, low, high, low / 2)
  backward = tpu_programs.Cost(2 * 10**9, low, high, low / 2)
  return ffn_report.Record(
    'v6e', 'base', 'swish:gated', 8, 16, 1, form, forward, backward, 5, 6, vmem
  )


def test_the_report_names_xlas_best(tmp_path):
  records = [
    record('pallas inputs', 1e6, 9e6, vmem=3.0),
    record('xla remat', 4e6, 5e6),
    record('xla inputs', 2e6, 2e6),
    record('xla dots', 1.25e6, 2e6),
  ]
  page = tmp_path / 'kernels.md'
  begin = pages.begin(ffn_report.COMMAND)
  page.write_text(f'before\n{begin}\nold\n{pages.END}\nafter\n')
  table = tmp_path / 'choices.json'
  ffn_report.write(records, tmp_path, table)
  text = page.read_text()
  assert 'old' not in text and text.startswith('before') and 'after' in text
  row = rows(text)[0]
  # A kernel's is the lower end; remat stores as much, dots is the best.
  assert row['Mcycles'] == '2.00' and row['matrix unit'] == '50%'
  assert row['cycles/XLA'] == '0.500' and row['cycles/best'] == '0.800'
  assert '8.00 to 10.00' in text
  assert json.loads(table.read_text()) == [
    ['v6e', 'swish', True, 'inputs', 8, 16],
    ['v6e', 'swish', True, None, 8, 16],
  ]
  assert (tmp_path / 'kernels-v6e.png').stat().st_size > 1000


def rows(page):
  lines = [line for line in page.splitlines() if line.startswith('| ')]
  table = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  head = table.index(ffn_report.HEAD)
  return [
    dict(zip(ffn_report.HEAD, row, strict=True)) for row in table[head + 2 :]
  ]


def test_the_choice_follows_from_the_committed_table():
  chosen = set()
  for row in rows((ROOT / 'docs' / 'kernels.md').read_text(encoding='utf-8')):
    name, _, gate = row['block'].partition(':')
    key = row['chip'], name, gate == 'gated'
    shape = int(row['D']), int(row['F'])
    kernel, stored = row['form'].split()
    for save, column in ((stored, 'cycles/XLA'), (None, 'cycles/best')):
      if kernel != 'pallas' or row[column] == '-':
        continue
      if save is None and row['form'] != 'pallas inputs':
        continue
      if float(row[column]) <= dispatch.MARGIN:
        chosen.add((*key, save, *shape))
  assert chosen == dispatch.TABLE


def test_every_form_has_its_error():
  found = dict(ffn_forms.errors_of('swish:gated', tokens=32, d=128, f=128))
  assert set(found) == {'xla all', *ffn_forms.FORMS}
  for y, *gradients, dc in found.values():
    assert dc is None and 0 < max(y, *gradients) < 2e-2
