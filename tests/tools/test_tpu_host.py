"""tools/tpu/tpu_host.sh, which signals the run that it started and no other."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


class Host:
  """A checkout on a host, of which only the script is there."""

  def __init__(self, folder):
    (folder / 'tools/tpu').mkdir(parents=True)
    self.script = shutil.copy(
      ROOT / 'tools/tpu/tpu_host.sh', folder / 'tools/tpu'
    )
    self.pid = folder / '.tpu_run/pid'
    self.groups = []

  def __call__(self, *arguments):
    found = subprocess.run(
      ['bash', self.script, *arguments],
      capture_output=True,
      text=True,
      timeout=120,
    )
    return found.stdout + found.stderr

  def start(self):
    """Starts a run that ends by SIGTERM; returns its process."""
    self('start', 'sleep', '1000')
    pid = int(self.pid.read_text().split()[0])
    self.groups.append(pid)
    return pid


@pytest.fixture
def host(tmp_path):
  host = Host(tmp_path)
  yield host
  for group in host.groups:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(group, signal.SIGKILL)


@pytest.fixture
def stranger(host):
  """A process group that is none of ours."""
  process = subprocess.Popen(['sleep', '1000'], start_new_session=True)
  yield process
  process.kill()
  process.wait()


def test_the_run_that_was_started_is_stopped(host):
  pid = host.start()
  assert 'state=running' in host('status')
  assert host('start', 'sleep', '1000') == ''
  assert int(host.pid.read_text().split()[0]) == pid, 'not started twice'
  host('stop')
  # By SIGTERM, which ended the sleep.
  assert 'state=halted code=143' in host('status')


def another_boot(born):
  return ['00000000-0000-0000-0000-000000000000', *born[1:]]


def another_start(born):
  return [born[0], str(int(born[1]) - 1)]


def only_a_number(born):
  return []


@pytest.mark.parametrize(
  'born', [another_boot, another_start, only_a_number], ids=lambda f: f.__name__
)
def test_a_process_that_has_got_the_number_is_left_alone(host, stranger, born):
  """As after a reboot, or when numbers have gone round."""
  os.killpg(host.start(), signal.SIGKILL)
  # The stranger's own words, but for what `born` makes of them.
  stat = pathlib.Path(f'/proc/{stranger.pid}/stat').read_text()
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  words = born([boot, stat.rpartition(') ')[2].split()[19]])
  host.pid.write_text(' '.join([str(stranger.pid), *words]) + '\n')

  assert 'state=lost' in host('status')
  host('follow', '1')  # Ends at once; the run has no more lines.
  host('stop')
  time.sleep(0.2)
  assert stranger.poll() is None
  assert host.start() != stranger.pid
  assert 'state=running' in host('status')


def test_the_words_are_those_of_a_process(host, stranger):
  """The test above, were the start time another field, could not fail."""
  os.killpg(host.start(), signal.SIGKILL)
  stat = pathlib.Path(f'/proc/{stranger.pid}/stat').read_text()
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  born = stat.rpartition(') ')[2].split()[19]
  host.pid.write_text(f'{stranger.pid} {boot} {born}\n')
  assert 'state=running' in host('status')
  host('stop')
  assert stranger.wait(10) == -signal.SIGTERM
