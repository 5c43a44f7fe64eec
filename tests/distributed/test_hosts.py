"""Real processes, each with two devices: one run, whoever dies."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import small_run
from data_cases import folder, task  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds that others may take to end
WAIT = 500  # seconds for a whole run on a busy machine
# Ended by the error that they see, or by JAX, whichever is first.
LOST = {1, -signal.SIGABRT}

pytestmark = pytest.mark.timeout(2000)


def free_port():
  """One where Open MPI's are."""
  while True:
    port = random.randrange(65535 - 4096 + 1, 65535)
    with contextlib.suppress(OSError), socket.create_server(('', port)):
      return port


def environment(devices=2):
  flags = f'--xla_force_host_platform_device_count={devices}'
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{flags} --xla_backend_optimization_level=0',
    'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
  }


def open_mpi(count, rank, port):
  """What mpirun tells its processes; JAX makes a port of the job's number."""
  job = (port - (65535 - 4096 + 1)) % 4096 * 4096
  return {
    'OMPI_MCA_orte_hnp_uri': f'{job}.0;tcp://127.0.0.1:1',
    'OMPI_COMM_WORLD_SIZE': str(count),
    'OMPI_COMM_WORLD_RANK': str(rank),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(rank),
  }


class Run:
  """The processes of one run, and what they leave."""

  def __init__(self, count, options, extra=(), devices=2, mpi=False):
    port = free_port()
    self.begun = time.monotonic()
    self.processes = []
    for rank in range(count):
      flags, variables = [], {}
      if mpi:
        flags, variables = ['--multiprocess_gpu'], open_mpi(count, rank, port)
      elif count > 1:
        flags = [
          f'--coordinator_address=localhost:{port}',
          f'--process_count={count}',
          f'--process_index={rank}',
          '--heartbeat_timeout=20',
        ]
      self.processes.append(
        subprocess.Popen(
          [
            sys.executable,
            str(ROOT / 'tests/support/host_process.py'),
            json.dumps(options),
            *flags,
            *extra,
          ],
          env=environment(devices) | variables,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
          text=True,
          cwd=ROOT,
        )
      )

  def end(self, first=None):
    """Exit codes and what was said; `first` ends before the others."""
    try:
      if first is not None:
        self.processes[first].wait(WAIT)
      limit = WAIT if first is None else LIMIT
      texts = [p.communicate(timeout=limit)[1] for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    return [p.returncode for p in self.processes], texts


def check_lost(codes, texts, dead):
  """All others have ended, with one sentence of ours, which names the dead."""
  for rank, (code, text) in enumerate(zip(codes, texts, strict=True)):
    *lines, line = text.splitlines()
    assert line.startswith('error: '), texts
    assert not any(other.startswith('error: ') for other in lines), texts
    assert 'the run goes on from its last checkpoint' in line
    if rank == dead:
      assert code == -signal.SIGKILL, texts
    else:
      assert code in LOST, texts
      assert re.search(f'host {dead} .*died', line), texts


def notes(path, rank):
  lines = pathlib.Path(path, f'{rank}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def rows(path, rank):
  return {n['step']: n['rows'] for n in notes(path, rank) if 'rows' in n}


def losses(path, rank, split='train'):
  keys = ('loss', 'z_loss', 'accuracy', 'gradient_norm')
  return {
    n['at']: tuple(n[k] for k in keys if k in n)
    for n in notes(path, rank)
    if n.get('split') == split
  }


@pytest.fixture
def options(folder, tmp_path):  # noqa: F811
  def make(name, activation, **more):
    (tmp_path / name).mkdir(exist_ok=True)
    return {
      'data': str(folder),
      'model_dir': str(tmp_path / name / 'run'),
      'notes': str(tmp_path / name),
      'activation': activation,
      'steps': 12,
    } | more

  return make


def close(got, wanted):
  assert got.keys() == wanted.keys()
  for step, values in wanted.items():
    np.testing.assert_allclose(got[step], values, rtol=1e-5, err_msg=str(step))


def check_shares(path, count, alone):
  """At each step the processes' rows, in order, are those of one process."""
  parts = [rows(path, rank) for rank in range(count)]
  complete = 0
  for step, mine in parts[0].items():
    assert len(mine) == len(alone[step]) // count
    # The one that died may have read no further.
    together = [row for part in parts for row in part.get(step, [])]
    if all(step in part for part in parts):
      assert together == alone[step], step
      complete += 1
  assert complete >= 5


def test_two_processes_are_one(options):
  """Rational: one is killed, the restart goes on, one is told to stop."""
  one = options('one', 'rational')
  codes, texts = Run(1, one, devices=4).end()
  assert codes == [0], texts
  expected = losses(one['notes'], 0)
  assert sorted(expected) == list(range(1, 13))

  two = options('two', 'rational')
  killed = two | {'signal': signal.SIGKILL, 'at': [1, 6]}
  check_lost(*Run(2, killed).end(first=1), dead=1)
  assert sorted(losses(two['notes'], 0)) == [1, 2, 3, 4, 5]

  terminated = two | {'signal': signal.SIGTERM, 'at': [1, 7]}
  codes, texts = Run(2, terminated).end()
  assert codes == [0, 0], texts
  assert 'Going on from the checkpoint of step 4' in texts[0]
  assert 'saved step' in texts[0] and not texts[1].count('saved step')
  found = [losses(two['notes'], rank) for rank in range(2)]
  assert found[0] == found[1]
  last = max(found[0])
  assert 7 <= last <= 12
  close(found[0], {n: expected[n] for n in range(1, last + 1)})
  assert pathlib.Path(two['model_dir'], f'checkpoints/{last}/state').is_dir()
  check_shares(two['notes'], 2, rows(one['notes'], 0))


def test_four_processes_are_one(options):
  """PolyNorm: killed, and continued by one, on a mesh that splits the width."""
  one = options('one', 'polynorm', steps=8)
  codes, texts = Run(1, one, devices=4).end()
  assert codes == [0], texts

  four = options('four', 'polynorm', steps=8)
  killed = four | {'signal': signal.SIGKILL, 'at': [2, 6]}
  check_lost(*Run(4, killed).end(first=2), dead=2)
  found = [losses(four['notes'], rank) for rank in range(4)]
  assert found[0] == found[1] == found[3]
  assert sorted(found[0]) == [1, 2, 3, 4, 5]
  check_shares(four['notes'], 4, rows(one['notes'], 0))

  codes, texts = Run(1, four | {'model_axis': 2}, devices=4).end()
  assert codes == [0], texts
  close(losses(four['notes'], 0), losses(one['notes'], 0))
  evaluated = losses(four['notes'], 0, 'eval')
  close(evaluated, losses(one['notes'], 0, 'eval'))


def test_a_folder_that_is_not_shared_is_refused(options, tmp_path):
  other = tmp_path / 'of_another_machine'
  refused = options('run', 'relu', steps=2)
  refused |= {'model_dir_of': {'1': str(other)}}
  codes, texts = Run(2, refused).end()
  assert codes == [2, 2], texts
  for text in texts:
    assert 'is not shared: what host 0 writes there, host(s) 1 of 2' in text
  for place in (other, tmp_path / 'run/run'):
    assert not place.exists()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_either_signal_to_any_host_saves_and_the_run_goes_on(options, number):
  one = options('one', 'polynorm')
  codes, texts = Run(1, one, devices=8).end()
  assert codes == [0], texts
  four = options('four', 'polynorm')
  stopped = four | {'signal': number, 'at': [3, 5]}
  codes, texts = Run(4, stopped).end()
  assert codes == [0] * 4, texts
  codes, texts = Run(2, four | {'model_axis': 2}).end()
  assert codes == [0, 0], texts
  close(losses(four['notes'], 0), losses(one['notes'], 0))


@pytest.mark.slow
def test_a_model_axis_wider_than_a_host(options):
  """All hosts read the same rows, and one writes the position."""
  one = options('one', 'polynorm', steps=8)
  codes, texts = Run(1, one, devices=4).end()
  assert codes == [0], texts
  two = options('two', 'polynorm', steps=8) | {'model_axis': 2}
  killed = two | {'signal': signal.SIGKILL, 'at': [1, 6]}
  check_lost(*Run(2, killed, devices=1).end(first=1), dead=1)
  codes, texts = Run(2, two, devices=1).end()
  assert codes == [0, 0], texts
  close(losses(two['notes'], 0), losses(one['notes'], 0))
  for rank in range(2):
    assert rows(two['notes'], rank) == rows(one['notes'], 0)


@pytest.mark.slow
def test_the_death_of_host_0_ends_all(options):
  killed = options('run', 'relu') | {'signal': signal.SIGKILL, 'at': [0, 4]}
  check_lost(*Run(4, killed).end(first=0), dead=0)


@pytest.mark.slow
def test_what_ends_one_host_ends_all(options):
  """Here JAX finds the processes itself, as on TPU, by Open MPI's words."""
  wrong = options('run', 'relu') | {'wrong': [1, 2]}
  codes, texts = Run(2, wrong, mpi=True).end()
  assert codes == [2, 2], texts
  for text in texts:
    assert 'host 1 of 2' in text and 'the data has come to an end' in text


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('variant', ['rational', 'polynorm'])
def test_the_tiny_model_by_the_real_command(folder, tmp_path, variant, count):  # noqa: F811
  """Unbroken by one, then by several, of which one is killed on the way."""
  expected = None
  for processes, kills in ((1, 0), (count, 1), (count, 0)):
    path = tmp_path / str(processes)
    port = free_port()
    started = [
      start(variant, folder, path, processes, rank, port)
      for rank in range(processes)
    ]
    if kills:
      for line in started[0].stderr:
        if line.startswith('step') and ' 6/' in f' {line}':
          started[-1].kill()
          break
    limit = LIMIT if kills else WAIT
    texts = [p.communicate(timeout=limit)[1] for p in started]
    codes = [p.returncode for p in started]
    if kills:
      check_lost(codes, texts, dead=count - 1)
      continue
    assert codes == [0] * processes, texts
    found = small_run.losses(path)
    if expected is None:
      expected = found
    close(
      {n: row[:4] for n, row in found.items()},
      {n: row[:4] for n, row in expected.items()},
    )


def start(variant, data, model_dir, count, rank, port):
  """One process of the real command on prepared data."""
  files = ('models/tiny', f'variants/{variant}', 'data/prepared')
  several = (
    f'--coordinator_address=localhost:{port}',
    f'--process_count={count}',
    f'--process_index={rank}',
    '--heartbeat_timeout=20',
  )
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      't5x_variants.train',
      *(f'--gin_file=gin/{file}.gin' for file in files),
      '--gin_file=gin/runs/pretrain.gin',
      f"--gin.MODEL_DIR='{model_dir}'",
      f"--gin.PREPARED_DATA='{data}'",
      '--gin.TRAIN_STEPS=10',
      '--gin.LOG_PERIOD=1',
      '--gin.CHECKPOINT_PERIOD=4',
      '--gin.EVAL_STEPS=1',
      *(several if count > 1 else ()),
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(2 if count > 1 else 4),
  )
