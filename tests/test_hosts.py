"""Real processes, each with two devices: one run, whoever dies."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_prepared import folder, task  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 60  # seconds that others may take to end
WAIT = 250  # seconds for a whole run on a busy machine

pytestmark = pytest.mark.timeout(1200)


def free_port():
  """One whose next one is free as well."""
  while True:
    with contextlib.ExitStack() as stack:
      one = stack.enter_context(socket.create_server(('', 0)))
      port = one.getsockname()[1]
      with contextlib.suppress(OSError, OverflowError):
        stack.enter_context(socket.create_server(('', port + 1)))
        return port


def environment(devices=2):
  flags = f'--xla_force_host_platform_device_count={devices}'
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{flags} --xla_backend_optimization_level=0',
    'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
  }


class Run:
  """The processes of one run, and what they leave."""

  def __init__(self, count, options, extra=(), devices=2):
    port = free_port()
    self.begun = time.monotonic()
    self.processes = []
    for rank in range(count):
      flags = []
      if count > 1:
        flags = [
          f'--coordinator_address=localhost:{port}',
          f'--process_count={count}',
          f'--process_index={rank}',
        ]
      self.processes.append(
        subprocess.Popen(
          [
            sys.executable,
            str(ROOT / 'tests/host_process.py'),
            json.dumps(options),
            *flags,
            *extra,
          ],
          env=environment(devices),
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


def check_shares(paths_and_counts, alone):
  """At each step the processes' rows, in order, are those of one process."""
  for path, count in paths_and_counts:
    parts = [rows(path, rank) for rank in range(count)]
    for step, mine in parts[0].items():
      together = [row for part in parts for row in part.get(step, [])]
      if len(together) == len(alone[step]):
        assert together == alone[step], step
        assert len(mine) == len(alone[step]) // count


def test_two_processes_are_one(options):
  """Rational: killed, continued, terminated, and continued by one alone."""
  one = options('one', 'rational')
  codes, texts = Run(1, one, devices=4).end()
  assert codes == [0], texts
  expected = losses(one['notes'], 0)
  assert sorted(expected) == list(range(1, 13))

  two = options('two', 'rational')
  killed = two | {'signal': signal.SIGKILL, 'at': [1, 6]}
  codes, texts = Run(2, killed).end(first=1)
  assert codes[1] == -signal.SIGKILL, texts
  assert codes[0] == 1, texts
  assert 'error: host 1 of 2' in texts[0] and 'died' in texts[0]
  assert sorted(losses(two['notes'], 0)) == [1, 2, 3, 4, 5]
  # What rank 1 noted before it died it will note again.
  terminated = two | {'signal': signal.SIGTERM, 'at': [1, 7]}
  codes, texts = Run(2, terminated).end()
  assert codes == [0, 0], texts
  assert 'Going on from the checkpoint of step 4' in texts[0]
  assert 'saved step' in texts[0] and 'saved step' not in texts[1]
  found = [losses(two['notes'], rank) for rank in range(2)]
  assert found[0] == found[1]
  reached = max(found[0])
  assert 7 <= reached <= 12
  check_shares([(two['notes'], 2)], rows(one['notes'], 0))
  codes, texts = Run(1, two, devices=2).end()
  assert codes == [0], texts
  close(losses(two['notes'], 0), expected)
  close(losses(two['notes'], 0, 'eval'), losses(one['notes'], 0, 'eval'))


def test_four_processes_are_one(options):
  """PolyNorm: killed, and continued by two, on a mesh that splits the width."""
  one = options('one', 'polynorm', steps=8)
  codes, texts = Run(1, one, devices=4).end()
  assert codes == [0], texts

  four = options('four', 'polynorm', steps=8)
  killed = four | {'signal': signal.SIGKILL, 'at': [2, 6]}
  codes, texts = Run(4, killed).end(first=2)
  assert codes == [1, 1, -signal.SIGKILL, 1], texts
  for rank in (0, 1, 3):
    assert 'error: host 2 of 4' in texts[rank] and 'died' in texts[rank]
  found = [losses(four['notes'], rank) for rank in range(4)]
  assert found[0] == found[1] == found[3]
  assert sorted(found[0]) == [1, 2, 3, 4, 5]
  check_shares([(four['notes'], 4)], rows(one['notes'], 0))

  codes, texts = Run(2, four | {'model_axis': 2}).end()
  assert codes == [0, 0], texts
  close(losses(four['notes'], 0), losses(one['notes'], 0))
  assert losses(four['notes'], 0) == losses(four['notes'], 1)


def test_a_folder_that_is_not_shared_is_refused(options, tmp_path):
  other = tmp_path / 'of_another_machine'
  refused = options('run', 'relu', steps=2)
  refused |= {'model_dir_of': {'1': str(other)}}
  codes, texts = Run(2, refused).end()
  assert codes == [2, 2], texts
  for text in texts:
    assert 'is not shared: what host 0 writes there, host(s) 1 of 2' in text
  for folder in (other, tmp_path / 'run/run'):  # noqa: F402
    assert not list(folder.iterdir())


def test_what_ends_one_host_ends_all(options):
  wrong = options('run', 'relu') | {'wrong': [1, 2]}
  codes, texts = Run(2, wrong).end()
  assert codes == [2, 2], texts
  for text in texts:
    assert 'host 1 of 2' in text and 'the data has come to an end' in text
