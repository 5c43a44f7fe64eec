"""Sweeps: which runs, and that stopping them loses and repeats nothing."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from t5x_variants import errors
from t5x_variants.analysis import sweeps
from t5x_variants.cli import gin_utils

ROOT = pathlib.Path(__file__).parents[2]
# The command, with a training that costs nothing.
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from t5x_variants import sweep
from t5x_variants.analysis import scheduler
from t5x_variants.cli import gin_utils
scheduler.PROGRAM = [
  sys.executable, {str(ROOT / 'tests/support/stub_train.py')!r}
]
scheduler._POLL_SECONDS = 0.02
gin_utils.run(sweep.main)
"""
SWEEP_COMMAND = (sys.executable, '-m', 't5x_variants.sweep')
GIN = """
from __gin__ import dynamic_registration
from t5x_variants.analysis import sweeps
SWEEP_DIR = %gin.REQUIRED
STEPS = 'TRAIN_STEPS=3'
sweeps.Sweep:
  folder = %SWEEP_DIR
  variants = ['relu', 'swiglu']
  stages = [@first/sweeps.Stage(), @second/sweeps.Stage()]
first/sweeps.Stage:
  name = 'first'
  model = 'tiny'
  data = ['prepared']
  run = 'pretrain'
  seeds = [0]
  bindings = [%STEPS]
second/sweeps.Stage:
  name = 'second'
  model = 'tiny'
  data = ['pairs', 'text_files']
  run = 'finetune'
  seeds = [1, 2]
  bindings = [%STEPS]
  start_from = 'first'
"""
STAGE = sweeps.Stage('first', 'tiny', ['prepared'], 'pretrain', [0])
SECOND = dataclasses.replace(
  STAGE, name='second', data=['pairs'], start_from='first'
)
SWEEP = sweeps.Sweep('runs', ['relu', 'swiglu'], [STAGE, SECOND])


def plan(sweep):
  return sweeps.plan(sweep, gin_utils.gin_folder())


class Sweeper:
  """Runs the driver in a folder and reads the ledger."""

  def __init__(self, folder):
    self.folder = folder
    (folder / 'sweep.gin').write_text(GIN)

  def start(self, *arguments, **environment):
    return subprocess.Popen(
      [
        *(sys.executable, '-c', DRIVER, '--gin_file=sweep.gin'),
        *("--gin.SWEEP_DIR='out'", *arguments),
      ],
      cwd=self.folder,
      env=os.environ | {'LEDGER': str(self.folder / 'ledger')} | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, *arguments, **environment):
    process = self.start(*arguments, **environment)
    text, _ = process.communicate(timeout=100)
    return process.returncode, text

  def ledger(self, what):
    """The lines of one kind, as (run, number)."""
    path = self.folder / 'ledger'
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split() for line in lines]
    return [(run, int(step)) for kind, run, step in found if kind == what]

  def wait_for(self, what, count):
    deadline = time.monotonic() + 60
    while len(self.ledger(what)) < count:
      assert time.monotonic() < deadline
      time.sleep(0.02)


@pytest.fixture
def sweeper(tmp_path):
  return Sweeper(tmp_path)


def all_runs():
  second = [
    f'out/second/{task}/{variant}-{seed}'
    for task in ('pairs', 'text_files')
    for variant in ('relu', 'swiglu')
    for seed in (1, 2)
  ]
  return {*second, 'out/first/prepared/relu-0', 'out/first/prepared/swiglu-0'}


def once_each(steps):
  return {(run, step) for run in all_runs() for step in steps}


def test_a_plan_is_the_product_and_starts_with_what_others_need():
  found = plan(
    dataclasses.replace(
      SWEEP,
      stages=[STAGE, dataclasses.replace(SECOND, seeds=[3, 4], tested=True)],
    )
  )
  assert [run.name for run in found] == [
    'first/prepared/relu-0',
    'first/prepared/swiglu-0',
    'second/pairs/relu-3',
    'second/pairs/swiglu-3',
    'second/pairs/relu-4',
    'second/pairs/swiglu-4',
  ]
  assert [run.needs for run in found[:3]] == [None, None, found[0].name]
  assert found[-1].arguments == (
    '--gin_file=gin/models/tiny.gin',
    '--gin_file=gin/variants/swiglu.gin',
    '--gin_file=gin/data/pairs.gin',
    '--gin_file=gin/runs/pretrain.gin',
    "--gin.MODEL_DIR='runs/second/pairs/swiglu-4'",
    '--gin.RANDOM_SEED=4',
    "--gin.INITIAL_CHECKPOINT_PATH='runs/first/prepared/swiglu-0'",
  )


def test_a_run_starts_from_its_own_seed_where_there_are_several():
  seeds = [dataclasses.replace(s, seeds=[5, 6]) for s in (STAGE, SECOND)]
  found = plan(dataclasses.replace(SWEEP, stages=seeds))
  needs = {run.name: run.needs for run in found}
  assert needs['second/pairs/relu-6'] == 'first/prepared/relu-6'


def test_a_stage_has_tasks_with_values_and_variants_of_its_own():
  data = {'cola': ['glue', "TASK='cola'"], 'rte': ['glue', "TASK='glue_rte'"]}
  stage = dataclasses.replace(
    SECOND,
    data=data,
    variants=['swiglu'],
    bindings=['TRAIN_STEPS=2'],
    seeds=[7],
  )
  found = plan(dataclasses.replace(SWEEP, stages=[STAGE, stage]))[2:]
  assert [run.name for run in found] == [
    'second/cola/swiglu-7',
    'second/rte/swiglu-7',
  ]
  assert found[0].arguments[2] == '--gin_file=gin/data/glue.gin'
  assert found[0].arguments[-2:] == ("--gin.TASK='cola'", '--gin.TRAIN_STEPS=2')


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'variants': ['reluu']}, 'no gin/variants/reluu.gin.*swiglu'),
    ({'variants': ['mine/own.gin']}, 'no mine/own.gin'),
    ({'variants': []}, 'at least one variant'),
    ({'variants': ['relu', 'relu']}, 'share the folder first/prepared/relu-0'),
    ({'folder': None}, 'SWEEP_DIR is None'),
    ({'stages': [SECOND]}, "starts from 'first', which is no stage before"),
    ({'stages': [STAGE, STAGE]}, "A stage is called 'first'"),
    (
      {'stages': [dataclasses.replace(STAGE, data=['no_task'])]},
      'no gin/data/no_task.gin.*embedded',
    ),
    (
      {'stages': [dataclasses.replace(STAGE, variants=['gelu'])]},
      "has the variant 'gelu', which is none of the sweep",
    ),
    (
      {'stages': [dataclasses.replace(STAGE, seeds=[])]},
      'at least one file of gin/data and one seed',
    ),
    (
      {
        'stages': [
          dataclasses.replace(STAGE, seeds=[0, 1]),
          dataclasses.replace(SECOND, seeds=[1, 2]),
        ]
      },
      'has no run of seed 2',
    ),
    (
      {'stages': [dataclasses.replace(STAGE, data=['pairs', 'c4']), SECOND]},
      '2 tasks',
    ),
  ],
)
def test_what_cannot_be_planned_is_said(changes, says):
  with pytest.raises(errors.UserError, match=f'(?s){says}'):
    plan(dataclasses.replace(SWEEP, **changes))


def test_all_runs_once_and_no_more_the_second_time(sweeper):
  status, text = sweeper.run('--processes=3')
  assert status == 0, text
  assert sorted(sweeper.ledger('step')) == sorted(once_each([1, 2, 3]))
  assert '[10/10]' in text and '0 left' in text
  # What is started from ends before what starts from it begins.
  order = (sweeper.folder / 'ledger').read_text()
  for variant in ('relu', 'swiglu'):
    ended = order.index(f'end out/first/prepared/{variant}-0')
    assert ended < order.index(f'start out/second/pairs/{variant}-1')
  run = sweeper.folder / 'out/second/pairs/relu-1'
  assert (run / 'log.txt').exists()
  assert (run / 'command.txt').read_text().startswith('python -m t5x_variants')
  status, text = sweeper.run()
  assert status == 0 and '10 of 10 runs are finished' in text
  assert len(sweeper.ledger('start')) == 10


def test_a_failure_ends_neither_the_sweep_nor_what_it_has_done(sweeper):
  status, text = sweeper.run(FAIL='first/prepared/swiglu|pairs/relu-2')
  assert status == 1
  assert re.search(
    r'FAILED second/pairs/relu-2: exit status 3: error: told to fail \(out',
    text,
  )
  needing = re.findall(r'FAILED (second\S*): not run: it needs first/\S*', text)
  assert len(needing) == 4 and all('swiglu' in name for name in needing)
  done = {run for run, _ in sweeper.ledger('end')}
  assert done == {r for r in all_runs() if 'relu' in r} - {
    'out/second/pairs/relu-2'
  }
  status, text = sweeper.run()
  assert status == 0, text
  assert sorted(sweeper.ledger('step')) == sorted(once_each([1, 2, 3]))


def test_killed_with_all_its_runs_it_goes_on(sweeper):
  process = sweeper.start('--processes=2', STEP_SECONDS='0.1')
  sweeper.wait_for('end', 3)
  sweeper.wait_for('step', 10)
  process.kill()
  process.communicate()
  kill_orphans(sweeper)
  ended = {run for run, _ in sweeper.ledger('end')}
  before = sweeper.ledger('start')
  status, text = sweeper.run('--processes=2')
  assert status == 0, text
  again = sweeper.ledger('start')[len(before) :]
  assert not ended & {run for run, _ in again}
  assert set(sweeper.ledger('step')) == once_each([1, 2, 3])
  # A step that was killed before its checkpoint is made again, no other.
  assert len(sweeper.ledger('step')) <= 30 + 2
  assert {run for run, _ in sweeper.ledger('end')} == all_runs()


def test_killed_alone_it_leaves_its_runs_alone(sweeper):
  """What a killed sweep has started is not started a second time."""
  process = sweeper.start('--processes=2', STEP_SECONDS='0.3')
  sweeper.wait_for('start', 2)
  process.kill()
  process.communicate()
  status, text = sweeper.run('--processes=2')
  assert status == 0, text
  assert sorted(sweeper.ledger('step')) == sorted(once_each([1, 2, 3]))
  assert len(sweeper.ledger('start')) == 10


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_lets_its_runs_save(sweeper, number):
  process = sweeper.start('--processes=2', STEP_SECONDS='0.2')
  sweeper.wait_for('step', 2)
  process.send_signal(number)
  text, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number, text
  assert 'goes on from there' in text
  started = {run for run, _ in sweeper.ledger('start')}
  if number == signal.SIGTERM:  # The stub knows no other.
    assert {run for run, _ in sweeper.ledger('saved')} == started
  status, _ = sweeper.run('--processes=2')
  assert status == 0
  assert sorted(sweeper.ledger('step')) == sorted(once_each([1, 2, 3]))


def test_a_folder_of_another_sweep_is_left_alone(sweeper):
  assert sweeper.run()[0] == 0
  status, text = sweeper.run("--gin.STEPS='TRAIN_STEPS=4'")
  assert status == 2 and 'another command' in text and 'TRAIN_STEPS=4' in text
  assert len(sweeper.ledger('start')) == 10
  os.unlink(sweeper.folder / 'out/first/prepared/relu-0/command.txt')
  status, text = sweeper.run()
  assert status == 2 and 'that no sweep has made' in text


def test_a_folder_that_cannot_be_written_is_said(sweeper):
  (sweeper.folder / 'out').write_text('no folder')
  status, text = sweeper.run()
  assert status == 2 and 'SWEEP_DIR out cannot be written to' in text


def test_dry_run_prints_the_commands_and_writes_nothing(sweeper):
  status, text = sweeper.run('--dry_run')
  assert status == 0 and not (sweeper.folder / 'out').exists()
  assert len(text.splitlines()) == 10
  assert all(
    line.startswith('python -m t5x_variants.train --gin_file=')
    for line in text.splitlines()
  )


def test_the_shipped_sweeps_are_found_from_any_folder(tmp_path):
  for sweep in (ROOT / 'gin/sweeps').glob('*.gin'):
    done = subprocess.run(
      [
        *(*SWEEP_COMMAND, '--dry_run'),
        f'--gin_file=gin/sweeps/{sweep.name}',
      ],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    assert 'python -m t5x_variants.train' in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_low_data_sweep_itself_killed_and_started_again(tmp_path):
  """Real runs, of a few steps; the report has a number in every cell."""
  command = [
    *(*SWEEP_COMMAND, '--processes=2'),
    *('--gin_file=gin/sweeps/low_data.gin', "--gin.SWEEP_DIR='out'"),
    *("--gin.VARIANTS=['gelu', 'swiglu']", '--gin.SEEDS=[0, 1]'),
    "--gin.PRETRAIN_STEPS='TRAIN_STEPS=6'",
    "--gin.FINETUNE_STEPS='TRAIN_STEPS=6'",
  ]
  options = {
    'cwd': tmp_path,
    'env': os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
  }
  process = subprocess.Popen(command, start_new_session=True, **options)
  first = [
    tmp_path / f'out/pretrain/prepared/{v}-0' for v in ('gelu', 'swiglu')
  ]
  while not all((run / 'checkpoints/6').exists() for run in first):
    assert process.poll() is None
    time.sleep(0.1)
  process.kill()
  process.wait()
  before = [(run / 'metrics.jsonl').read_bytes() for run in first]
  assert subprocess.run(command, **options).returncode == 0
  assert [(run / 'metrics.jsonl').read_bytes() for run in first] == before
  done = subprocess.run(
    [sys.executable, '-m', 't5x_variants.report', 'out/finetune'],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    **options,
  )
  assert 'embedded_questions f1' in done.stdout and '(n 2)' in done.stdout
  assert 'not run' not in done.stdout


def kill_orphans(sweeper):
  """Ends what was started and has not ended."""
  ended = {run for run, _ in sweeper.ledger('end')}
  for run, number in sweeper.ledger('pid'):
    if run not in ended:
      os.kill(number, signal.SIGKILL)
