"""Two processes never train in one run directory."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from t5x_variants import errors, paths
from t5x_variants.run_dir import run_lock

HOLD = """
import pathlib, sys, time
from t5x_variants.run_dir import run_lock
with run_lock.held(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


def holder(folder):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'held\n'
  return process


def test_the_second_says_who_trains_there_and_death_frees(tmp_path):
  with holder(tmp_path) as process:
    with pytest.raises(errors.UserError) as error, run_lock.held(tmp_path):
      pass
    words = f'process {process.pid} on {os.uname().nodename}'
    assert words in str(error.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run_lock.held(tmp_path):
      pass
  assert not (tmp_path / 'lock').exists()


def test_an_end_by_an_error_frees(tmp_path):
  with pytest.raises(KeyError), run_lock.held(tmp_path):
    raise KeyError
  with run_lock.held(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('text', ['', '[1]', '{"pid": "x", "time": 1e99}', '{'])
def test_whatever_stands_in_the_file(tmp_path, text):
  with run_lock.held(tmp_path):
    (tmp_path / 'lock').write_text(text)
    with (
      pytest.raises(errors.UserError, match='is in use'),
      run_lock.held(tmp_path),
    ):
      pass
  (tmp_path / 'lock').write_text(text)
  with run_lock.held(tmp_path):
    pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that is taken for a bucket, and a rule of short times."""
  monkeypatch.setattr(paths, 'is_remote', lambda path: True)
  monkeypatch.setattr(run_lock, 'RENEWED', 0.1)
  monkeypatch.setattr(run_lock, 'EXPIRES', 1.0)
  return epath.Path(tmp_path)


def test_in_a_bucket_a_lock_that_is_renewed_refuses(bucket, capsys):
  with (
    run_lock.held(bucket),
    pytest.raises(errors.UserError, match=f'process {os.getpid()} on'),
    run_lock.held(bucket),
  ):
    pass
  assert 'looking for up to' in capsys.readouterr().err
  assert not (bucket / 'lock').exists()


def test_in_a_bucket_a_lock_of_the_dead_expires(bucket):
  (bucket / 'lock').write_text('{"host": "gone", "pid": 7, "time": 0}')
  begun = time.monotonic()
  with run_lock.held(bucket):
    assert time.monotonic() - begun >= 1.0
    assert f'"pid": {os.getpid()}' in (bucket / 'lock').read_text()


def test_without_locks_of_the_file_system_it_is_said(
  tmp_path, monkeypatch, capsys
):
  def refuse(file, how):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(run_lock.fcntl, 'flock', refuse)
  with run_lock.held(pathlib.Path(tmp_path)):
    pass
  assert 'file system without locks' in capsys.readouterr().err


def test_a_full_disk_does_not_stop_it(tmp_path):
  """A limit on the size of files stands in for a disk that is full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    with (
      run_lock.held(tmp_path),
      pytest.raises(errors.UserError, match='is in use'),
      run_lock.held(tmp_path),
    ):
      pass
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
