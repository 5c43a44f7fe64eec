"""Tables of runs: their statistics by another way, and what is said of gaps."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from t5x_variants import errors
from t5x_variants.analysis import tables
from t5x_variants.run_dir import layout

GATED = {'swiglu': ("'swish'", True)}


def write(folder, name, variant, seed, *records, frozen=None, steps=100):
  """A run directory; records are ('eval' or 'test', step, values)."""
  run = folder / name
  run.mkdir(parents=True)
  activation, gated = GATED.get(variant, (f"'{variant}'", False))
  lines = [
    f'ACTIVATION = {activation}',
    f'GATED = {gated}',
    f'LOW_DATA_SEED = {seed}',
    'RANDOM_SEED = %LOW_DATA_SEED',
    f'TRAIN_STEPS = {steps}',
    f'FROZEN = {frozen or "%FULL"}',
  ]
  (run / 'config.gin').write_text('\n'.join(lines) + '\n')
  with (run / 'metrics.jsonl').open('w') as file:
    for split, step, values in records:
      record = {'step': step, 'split': split, 'time': 1.0} | values
      file.write(json.dumps(record) + '\n')
  return run


def judged(value):
  """Records of a run that was better on its development examples."""
  return (
    ('eval', 0, {'loss': 2.0, 'task/accuracy': 99.0}),
    ('eval', 50, {'loss': 1.0, 'task/accuracy': 98.0}),
    ('test', 50, {'loss': 1.5, 'accuracy': 0.5, 'task/accuracy': value}),
  )


VALUES = {
  'relu': {1: 50.0, 2: 54.0, 3: 61.0, 4: 70.0},
  'swiglu': {1: 57.0, 2: 55.0, 4: 78.0},
  'rational': {9: 66.0},
}


@pytest.fixture
def sweep(tmp_path):
  for variant, values in VALUES.items():
    for seed, value in values.items():
      name = f'finetune/sentences/{variant}-{seed}'
      write(tmp_path, name, variant, seed, *judged(value))
  write(tmp_path, 'finetune/questions/relu-1', 'relu', 1, *judged(12.0))
  return tmp_path


def cells(text):
  """Row by row the cells of the first table, lines as a list."""
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  table = [line[2:-2].split(' | ') for line in lines]
  return {
    row[0].strip('*'): [cell.split('<br>') for cell in row[1:]]
    for row in (table[0], *table[2:])
  }


def report(*folders, **options):
  """The cells of `tables.report`."""
  return cells(tables.report(list(map(str, folders)), **options))


def test_means_and_paired_differences(sweep):
  table = report(sweep)
  heads = [cell[0] for cell in table['']]
  assert heads == ['questions accuracy', 'sentences accuracy']
  assert list(table) == ['', 'ReLU', 'SwiGLU', 'Rational']
  values = np.array(list(VALUES['relu'].values()))
  assert table['ReLU'][1] == [
    f'{values.mean():.2f} ± {values.std(ddof=1):.2f} (n 4)'
  ]
  assert table['ReLU'][0] == ['12.00 (n 1)']
  # Seed 3 of SwiGLU is missing: three pairs, and the interval of scipy's test.
  ours, base = ([VALUES[v][s] for s in (1, 2, 4)] for v in ('swiglu', 'relu'))
  found = scipy.stats.ttest_rel(ours, base)
  low, high = found.confidence_interval(0.95)
  mean = np.subtract(ours, base).mean()
  assert table['SwiGLU'][1] == [
    f'{np.mean(ours):.2f} ± {np.std(ours, ddof=1):.2f} (n 3)',
    f'{mean:+.2f} [{low:+.2f}, {high:+.2f}]',
  ]
  # By hand: differences 7, 1, 8; t(0.975, 2) = 4.30265.
  half = 4.30265 * math.sqrt(
    ((7 - mean) ** 2 + (1 - mean) ** 2 + (8 - mean) ** 2) / 2 / 3
  )
  assert f'{mean - half:+.2f}' in table['SwiGLU'][1][1]


def test_what_was_not_run_is_said(sweep):
  table = report(sweep)
  assert table['SwiGLU'][0] == table['Rational'][0] == ['not run']
  assert table['Rational'][1] == ['66.00 (n 1)', 'no seed in common with ReLU']


def test_a_baseline_by_file_name_and_fewer_pairs_than_runs(sweep):
  table = report(sweep, baseline='swiglu')
  assert len(table['SwiGLU'][1]) == 1
  assert table['ReLU'][1][1].startswith('-5.33 [')
  assert table['ReLU'][1][1].endswith('(n 3)')
  with pytest.raises(errors.UserError, match=r"no row 'geglu': .*SwiGLU"):
    report(sweep, baseline='geglu')


def test_without_a_test_record_the_best_evaluation_counts(tmp_path):
  records = [
    ('train', 10, {'loss': 0.1}),
    ('eval', 10, {'loss': 3.0, 'accuracy': 0.9}),
    ('eval', 20, {'loss': 2.5, 'accuracy': 0.1}),
    ('eval', 30, {'loss': math.nan, 'accuracy': 0.2}),
    ('eval', 40, {'loss': 2.75}),
  ]
  write(tmp_path, 'pretrain/prepared/gelu-0', 'gelu', 0, *records)
  table = report(tmp_path)
  assert table == {'': [['loss']], 'GELU': [['2.5000 (n 1)']]}


def test_a_run_under_way_does_not_count_among_tested_ones(sweep):
  early = (
    ('eval', 0, {'task/accuracy': 0.0}),
    ('eval', 5, {'task/accuracy': 1.0}),
  )
  write(sweep, 'finetune/sentences/rational-1', 'rational', 1, *early)
  write(sweep, 'finetune/sentences/swiglu-3', 'swiglu', 3, early[0])
  table = report(sweep)
  assert table['Rational'][1][0] == '66.00 (n 1)'
  assert table['SwiGLU'][1][0].endswith('(n 3)')


def test_the_glu_paper_s_first_table(tmp_path):
  for seed, loss in enumerate((2.0, 2.02, 1.98)):
    name = f'runs/relu-{seed}'
    eval_record = ('eval', 65536, {'loss': loss})
    write(tmp_path, name, 'relu', seed, eval_record, steps=65536)
    eval_record = ('eval', 65536, {'loss': loss - 0.05})
    write(
      tmp_path, f'more/swiglu-{seed}', 'swiglu', seed, eval_record, steps=65536
    )
  table = report(tmp_path, papers=['glu_1'])
  assert table['ReLU'] == [
    ['2.0000 ± 0.0200 (n 3)', 'paper 1.997 ± 0.005'],
    ['not run', 'paper 1.677'],
  ]
  mean, paper = table['SwiGLU'][0][1:]
  # Paired, the seeds' own spread cancels.
  assert mean == '-0.0500 [-0.0500, -0.0500]'
  assert paper == 'paper 1.944 ± 0.01, -0.053'
  assert table['ReGLU'][0] == ['not run', 'paper 1.953 ± 0.003, -0.044']


def test_a_mixture_fills_glue_with_its_average(tmp_path):
  tasks = 'cola sst2 mrpc stsb qqp mnli_matched mnli_mismatched qnli rte'
  values = {f'glue_{task}/accuracy': 60.0 for task in tasks.split()}
  values |= {'glue_mnli_matched/accuracy': 80.0, 'glue_mrpc/f1': 70.0}
  lower = dict.fromkeys(values, 50.0) | {'glue_rte/accuracy': 90.0}
  write(
    tmp_path,
    'runs/relu-0',
    'relu',
    0,
    *(('eval', 10, values), ('eval', 20, lower)),
  )
  table = report(tmp_path, papers=['glu_2'])
  ours = {h[0]: c[0] for h, c in zip(table[''], table['ReLU'], strict=True)}
  # MNLI's two sets are one task: (6 * 60 + 70 + 65) / 8 at the first step.
  assert ours['Average'] == '61.88 (n 1)'
  # Each task has the best of its own checkpoints.
  assert ours['RTE'] == '90.00 (n 1)' and ours['MNLI-m'] == '80.00 (n 1)'
  assert ours['CoLA'] == 'not run'  # No Matthews correlation was recorded.


def test_raft_s_arms_have_rows_and_its_average_needs_all_tasks(tmp_path):
  keys = tables.paper_table('raft_low_data').columns[0].mean_of
  for key in keys:
    task, metric = key.split('/')
    for seed, value in ((1, 40.0), (2, 44.0)):
      if seed == 2 and task == 'glue_rte':
        continue
      for variant in ('gelu', 'rational'):
        add = 5.0 if variant == 'rational' else 0.0
        record = ('test', 1, {f'task/{metric}': value + add})
        write(tmp_path, f'{task}/{variant}-{seed}', variant, seed, record)
  write(
    tmp_path / 'frozen',
    'glue_cola/rational-1',
    'rational',
    1,
    ('test', 1, {'task/matthews': 7.0}),
    frozen='%COEFFICIENTS_FROZEN',
  )
  table = report(tmp_path, papers=['raft_low_data'])
  assert table['Rational'][0] == ['45.00 (n 1)', '+5.00', 'paper +5.71']
  assert table['GELU'][0] == ['40.00 (n 1)', 'paper: unknown']
  assert table['Rational, coefficients frozen'][1][0] == '7.00 (n 1)'
  assert table['Rational, coefficients frozen'][0][0] == 'not run'


def test_all_papers_tables_can_be_printed(sweep):
  known = json.loads(tables.PAPERS.read_text(encoding='utf-8'))
  text = tables.report([str(sweep)], list(known))
  for table in known.values():
    assert table['title'] in text and table['source'] in text
    assert table['baseline'] in table['rows']
    assert {row.partition(',')[0] for row in table['rows']} <= set(
      layout.VARIANTS
    )
    for numbers in table['rows'].values():
      assert len(numbers) == len(table['columns'])


def test_a_folder_without_a_run_is_left_out(sweep, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  assert 'ReLU' in report(sweep, tmp_path / 'empty')
  printed = capsys.readouterr()
  assert 'no run directory, with a metrics.jsonl, in' in printed.err
  assert printed.out == ''


def test_bad_input_is_refused(sweep, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match=r'no run directory, .*empty'):
    report(tmp_path / 'empty')
  with pytest.raises(errors.UserError, match=r'no table .* takes one of glu_1'):
    report(sweep, papers=['glu_9'])
  # One seed twice is no second observation.
  write(sweep, 'again/sentences/relu-1', 'relu', 1, *judged(50.0))
  with pytest.raises(errors.UserError, match='are both ReLU with seed 1'):
    report(sweep)
  nothing = write(tmp_path / 'new', 'relu-0', 'relu', 0)
  with pytest.raises(errors.UserError, match='None of the runs'):
    report(nothing)
  (nothing / 'config.gin').unlink()
  with pytest.raises(errors.UserError, match='run of no variant'):
    report(nothing)
