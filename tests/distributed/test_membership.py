"""How each of several real processes ends, whatever happens to one of them.

None of these trains; tests/distributed/test_hosts.py has those that do.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import types

import jax
import pytest

from t5x_variants import errors
from t5x_variants.distributed import hosts, membership

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEARTBEAT = 15  # seconds
LIMIT = 60  # seconds within which all others end, whatever happens to one
AGAIN = 'the run goes on from its last checkpoint.'
COMMAND = 'Start the same command on every host'

pytestmark = pytest.mark.timeout(400)


def free_port():
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def flags_of(port, count, *indices, wait=150):
  return [
    [
      f'--coordinator_address=localhost:{port}',
      f'--process_count={count}',
      f'--process_index={index}',
      f'--initialization_timeout={wait}',
      f'--heartbeat_timeout={HEARTBEAT}',
    ]
    for index in indices
  ]


def happens(rank, then, doing, count=3, port=None):
  """A run of which one process does something."""
  flags = flags_of(port or free_port(), count, *range(count))
  return {'flags': flags, 'rank': rank, 'then': then, 'while': doing}


def gathers(*flags, then='refuse', doing='sleep'):
  """A run of which not all come, or not all agree."""
  return {'flags': list(flags), 'rank': 0, 'then': then, 'while': doing}


def ends_of(runs):
  """Lists of (status, seconds, output) by the runs' names."""
  found = subprocess.run(
    [
      sys.executable,
      *('-W', 'ignore:os.fork', '-W', 'ignore:This process:DeprecationWarning'),
      str(ROOT / 'tests/support/member_process.py'),
      json.dumps(list(runs.values())),
    ],
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
      'PYTHONPATH': str(ROOT),
    },
    capture_output=True,
    text=True,
    timeout=380,
  )
  assert found.returncode == 0, found.stderr
  return dict(zip(runs, json.loads(found.stdout), strict=True))


class Strangers:
  """Who reaches the port of host 0 while hosts gather: scanners, browsers."""

  SAY = (
    b'{"kind": "hello", "index": null, "count": 2}\n',
    b'',
    b'GET / HTTP/1.1\r\n\r\n',
    b'[' * 200_000 + b'\n',
  )

  def __init__(self, port):
    self._port, self._open = port, []
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._knock)
    self._thread.start()

  def _knock(self):
    for words in self.SAY:
      while not self._end.wait(0.05):
        with contextlib.suppress(OSError):
          connection = socket.create_connection(('localhost', self._port), 1)
          # Kept open: a slow one must not hold up the others.
          self._open.append(connection)
          connection.sendall(words)
          break

  def leave(self):
    """Returns how many were let in."""
    self._end.set()
    self._thread.join()
    for connection in self._open:
      connection.close()
    return len(self._open)


@pytest.fixture(scope='module')
def ends():
  """All at once, for their time is spent on waiting."""
  port = free_port()
  runs = {
    'killed': happens(1, 'kill', 'sleep'),
    'host 0 killed': happens(0, 'kill', 'sleep', count=2),
    'refused': happens(1, 'refuse', 'sleep', count=2, port=port),
    'failed': happens(0, 'fail', 'sleep', count=2),
    'missing': gathers(*flags_of(free_port(), 3, 0, 2, wait=20)),
    'no host 0': gathers(*flags_of(free_port(), 2, 1, wait=5)),
    'same index': gathers(*flags_of(free_port(), 3, 0, 1, 1, wait=20)),
    'Ctrl-C': gathers(
      *flags_of(free_port(), 2, 0), then='interrupt', doing='gather'
    ),
    'other count': gathers(
      *flags_of(other := free_port(), 2, 0), *flags_of(other, 3, 1)
    ),
  }
  strangers = Strangers(port)
  try:
    return ends_of(runs)
  finally:
    assert strangers.leave() == len(Strangers.SAY)


def check(found, *expected):
  """Each process' exit status and last line, the only one of ours.

  Args:
    found: status, seconds and output of each.
    *expected: for each the possible statuses and words of the last line.
  """
  for (status, seconds, text), (statuses, *words) in zip(
    found, expected, strict=True
  ):
    assert status in statuses, text
    assert seconds < LIMIT, text
    lines = text.splitlines()
    assert lines[-1].startswith('error: '), text
    assert sum(line.startswith('error: ') for line in lines) == 1, text
    for word in words:
      assert word in lines[-1], text


def name(index, count):
  return f'host {index} of {count} ({socket.gethostname()})'


KILLED = ({-signal.SIGKILL}, 'was killed', AGAIN)
# JAX aborts whoever has lost another; who notices it first ends with 1.
LOST = {1, -signal.SIGABRT}


def test_a_death_is_named_on_all_hosts(ends):
  dead = LOST, f'{name(1, 3)} died or hangs', AGAIN
  check(ends['killed'], dead, KILLED, dead)


def test_the_death_of_host_0_ends_all(ends):
  check(ends['host 0 killed'], KILLED, (LOST, name(1, 2), 'host 0 died', AGAIN))


def test_what_one_host_is_refused_ends_all(ends):
  """While strangers are connected to host 0's port."""
  words = f'{name(1, 2)}: The data has come to an end.'
  check(ends['refused'], *[({2}, words)] * 2)
  assert not any('Traceback' in text for _, _, text in ends['refused'])


def test_a_defect_of_one_host_ends_all_and_is_shown_there(ends):
  check(ends['failed'], *[({1}, f'{name(0, 2)}: ValueError: a defect')] * 2)
  assert ['Traceback' in text for _, _, text in ends['failed']] == [True, False]


def test_hosts_that_do_not_come(ends):
  words = 'not all 3 hosts have come', COMMAND
  check(ends['missing'], *(({2}, name(n, 3), *words) for n in (0, 2)))


def test_a_host_0_that_cannot_be_reached(ends):
  check(ends['no host 0'], ({2}, 'Host 0 cannot be reached at localhost:'))


def test_two_with_the_same_index(ends):
  """JAX ends one of the two, mostly at once; then one is missing."""
  ended = {2, -signal.SIGABRT}, '--process_index', COMMAND
  check(ends['same index'], *[ended] * 3)


def test_ctrl_c_while_hosts_gather(ends):
  check(ends['Ctrl-C'], ({-signal.SIGINT}, 'stopped while it waited', COMMAND))


def test_another_count_is_refused_on_all_hosts(ends):
  words = 'host 1 of', '--process_count is 3 here and 2 on host 0'
  check(ends['other count'], *[({2}, *words)] * 2)


@pytest.mark.slow
def test_hanging_and_interrupted_hosts():
  found = ends_of(
    {
      'killed': happens(1, 'kill', 'compute'),
      'hangs': happens(1, 'hang', 'sleep'),
      'hangs amid a computation': happens(1, 'hang', 'compute'),
      'host 0 hangs': happens(0, 'hang', 'sleep'),
      'host 0 killed': happens(0, 'kill', 'compute'),
      'interrupted': happens(2, 'interrupt', 'sleep'),
    }
  )
  dead = LOST, f'{name(1, 3)} died or hangs', AGAIN
  hung = ({None}, '')
  check(found['killed'], dead, KILLED, dead)
  check(found['hangs'], dead, hung, dead)
  check(found['hangs amid a computation'], dead, hung, dead)
  ended = [(LOST, name(n, 3), 'host 0 died', AGAIN) for n in (1, 2)]
  check(found['host 0 hangs'], hung, *ended)
  check(found['host 0 killed'], KILLED, *ended)
  words = f'{name(2, 3)}: Ctrl-C ended the run.'
  check(found['interrupted'], *[({130}, words)] * 3)


def test_the_last_line_is_printed_unless_the_process_ends_well(capfd):
  last = membership.LastLine()
  last.set('first')
  last.set('second')
  last._printer.stdin.close()  # As when this process ends.
  last._printer.wait()
  assert capfd.readouterr().err == 'error: second\n'
  last = membership.LastLine()
  last.set('third')
  last.close()
  assert capfd.readouterr().err == ''


def test_a_port_that_is_taken():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    given = three(f'localhost:{port}', 2, 0)
    with (
      pytest.raises(errors.UserError, match='second one with --process_index'),
      hosts.joined(types.SimpleNamespace(**FLAGS | given)),
    ):
      pass


FLAGS = {
  'coordinator_address': None,
  'process_count': None,
  'process_index': None,
  'multiprocess_gpu': False,
  'initialization_timeout': 300,
  'heartbeat_timeout': 40,
}


def three(address, count, index):
  return {
    'coordinator_address': address,
    'process_count': count,
    'process_index': index,
  }


@pytest.mark.parametrize(
  'values, words',
  [
    (three(None, 2, 0), 'all three; given are None, 2'),
    ({'coordinator_address': 'a:1'}, 'all three'),
    (three('a', 2, 0), "is 'a'; it must be HOST:PORT"),
    (three('a:b', 2, 0), 'must be HOST:PORT'),
    (three('a:99999', 2, 0), 'must be HOST:PORT'),
    (three('a:1', 0, 0), '--process_count is 0'),
    (
      three('a:1', 2, 2),
      '--process_index is 2; with --process_count=2 it must be from 0 to 1',
    ),
    (three('a:1', 2, -1), '--process_index is -1'),
    ({'heartbeat_timeout': 1}, '--heartbeat_timeout is 1'),
    ({'initialization_timeout': 0}, '--initialization_timeout is 0'),
  ],
)
def test_flags_that_do_not_fit(values, words):
  chosen = types.SimpleNamespace(**FLAGS | values)
  with pytest.raises(errors.UserError) as error, hosts.joined(chosen):
    pass
  assert words in str(error.value)


def test_no_cluster_that_jax_knows(monkeypatch):
  def initialize(**options):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  chosen = types.SimpleNamespace(**FLAGS | {'multiprocess_gpu': True})
  with (
    pytest.raises(errors.UserError, match='JAX finds no other hosts here'),
    hosts.joined(chosen),
  ):
    pass
  # On a machine that may be a slice's only host, no error.
  monkeypatch.setattr(hosts, '_may_be_a_pod', lambda: True)
  with hosts.joined(types.SimpleNamespace(**FLAGS)):
    pass
