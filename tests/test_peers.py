"""Who is missing, who dies, who goes silent: said, and within bounds."""

import socket
import threading
import time
import types

import jax
import pytest

from t5x_variants import errors, hosts, peers


class Cluster:
  """As many ends as there would be processes, each in a thread."""

  def __init__(self, count, present=None, silence=30.0, timeout=10.0, says=()):
    self.losses = {}
    self.errors = {}
    self.happened = threading.Event()
    listener = peers.listen(0)
    self.port = listener.getsockname()[1]
    present = range(count) if present is None else present
    self.ends = {}
    threads = []
    for place, index in enumerate(present):
      count_said = dict(says).get(index, count)
      end = peers.Peers(
        index,
        count_said,
        silence,
        lambda sentence, status, index=index: self._lost(
          index, sentence, status
        ),
      )
      self.ends[place] = end
      arguments = (listener, timeout) if index == 0 else ('localhost', timeout)
      threads.append(
        threading.Thread(target=self._gather, args=(place, index, *arguments))
      )
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()

  def _gather(self, place, index, where, timeout):
    try:
      if index == 0:
        self.ends[place].gather_as_first(where, timeout)
      else:
        self.ends[place].gather_as_other(where, self.port, timeout)
    except errors.UserError as error:
      self.errors[place] = str(error)

  def _lost(self, index, sentence, status):
    self.losses[index] = (sentence, status)
    self.happened.set()

  def watch(self):
    for end in self.ends.values():
      end.watch()

  def wait_for(self, count):
    until = time.monotonic() + 20
    while len(self.losses) < count and time.monotonic() < until:
      time.sleep(0.01)
    return self.losses

  def kill(self, index):
    """As a process that dies: it says nothing more, its connections end."""
    # Here its threads live on: they would take their own cut connections for
    # the others' death, and tell those whose line is not yet cut.
    self.ends[index]._verdict.set()
    self.cut(index)

  def cut(self, index):
    """Ends the connections of one."""
    for line in self.ends[index]._lines.values():
      line._connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cluster(monkeypatch):
  """Makes clusters, and closes their connections."""
  monkeypatch.setattr(peers, 'BEAT', 0.05)
  made = []

  def make(*args, **options):
    made.append(Cluster(*args, **options))
    return made[-1]

  yield make
  for one in made:
    for end in one.ends.values():
      end.close()
      end._verdict.set()
      for line in end._lines.values():
        line.close()
  time.sleep(0.1)


def test_all_come_and_leave(cluster):
  run = cluster(4)
  assert not run.errors
  run.watch()
  time.sleep(0.3)
  for end in run.ends.values():
    end.close()
  time.sleep(0.2)
  for index in range(4):
    run.cut(index)
  time.sleep(0.2)
  assert not run.losses


@pytest.mark.parametrize('dead', [0, 2])
def test_a_death_is_told_to_all_by_name(cluster, dead):
  run = cluster(4)
  run.watch()
  run.kill(dead)
  others = set(range(4)) - {dead}
  until = time.monotonic() + 20
  while not others <= set(run.losses) and time.monotonic() < until:
    time.sleep(0.01)
  for index in others:
    sentence, status = run.losses[index]
    assert f'host {dead} of 4 ({socket.gethostname()}) died' in sentence
    assert 'last checkpoint' in sentence and status == 1


def test_silence_is_death(cluster, monkeypatch):
  run = cluster(3, silence=2.0)
  monkeypatch.setattr(run.ends[1], '_beat', lambda: None)
  run.watch()
  for index, (sentence, _) in run.wait_for(3).items():
    if index != 1:
      assert 'host 1 of 3' in sentence and 'has been silent' in sentence


@pytest.mark.parametrize('failing', [0, 1])
def test_what_one_host_fails_of_all_are_told(cluster, failing):
  run = cluster(3)
  run.watch()
  run.ends[failing].fail('there is no data', 2, 0.05)
  found = run.wait_for(3)
  assert len(found) == 3
  for sentence, status in found.values():
    assert f'host {failing} of 3' in sentence
    assert sentence.endswith('there is no data') and status == 2


def test_who_is_missing_is_named_on_all_hosts(cluster):
  run = cluster(4, present=[0, 2], timeout=2.0)
  assert len(run.errors) == 2
  for sentence in run.errors.values():
    assert 'host(s) 1, 3 of 4 are missing' in sentence


def test_two_that_say_they_are_the_same_are_named(cluster):
  run = cluster(3, present=[0, 1, 1], timeout=2.0)
  assert len(run.errors) == 3
  for sentence in run.errors.values():
    assert 'say they are process 1 of 3' in sentence


def test_another_count_is_refused(cluster):
  run = cluster(3, says=[(1, 4)], timeout=2.0)
  assert '4' in run.errors[1] and 'expects 3' in run.errors[1]


def test_a_coordinator_that_is_not_there():
  begun = time.monotonic()
  with socket.create_server(('', 0)) as free:
    port = free.getsockname()[1]
  with pytest.raises(errors.UserError) as error:
    peers.Peers(1, 2, 30).gather_as_other('localhost', port, 1.0)
  assert f'cannot be reached at localhost:{port} within 1 s' in str(error.value)
  assert time.monotonic() - begun < 10


def test_a_stranger_on_the_port_is_ignored():
  listener = peers.listen(0)
  port = listener.getsockname()[1]
  first = peers.Peers(0, 2, 30)
  thread = threading.Thread(target=first.gather_as_first, args=(listener, 10.0))
  thread.start()
  with socket.create_connection(('localhost', port)) as stranger:
    stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
    second = peers.Peers(1, 2, 30)
    second.gather_as_other('localhost', port, 10.0)
  thread.join()
  for end in (first, second):
    for line in end._lines.values():
      line.close()


def test_a_port_that_is_taken():
  with socket.create_server(('', 0)) as taken:
    with pytest.raises(errors.UserError, match='second one with --process_ind'):
      peers.listen(taken.getsockname()[1])


FLAGS = {
  'coordinator_address': None,
  'process_count': None,
  'process_index': None,
  'multiprocess_gpu': False,
  'initialization_timeout': 300,
  'heartbeat_timeout': 45,
}


@pytest.mark.parametrize(
  'values, words',
  [
    ({'process_count': 2, 'process_index': 0}, 'all three; given are None, 2'),
    ({'coordinator_address': 'a:1'}, 'all three'),
    (
      {'coordinator_address': 'a', 'process_count': 2, 'process_index': 0},
      "is 'a'; it must be HOST:PORT",
    ),
    (
      {'coordinator_address': 'a:b', 'process_count': 2, 'process_index': 0},
      'must be HOST:PORT',
    ),
    (
      {'coordinator_address': 'a:1', 'process_count': 0, 'process_index': 0},
      '--process_count is 0',
    ),
    (
      {'coordinator_address': 'a:1', 'process_count': 2, 'process_index': 2},
      '--process_index is 2; with --process_count=2 it must be from 0 to 1',
    ),
    (
      {'coordinator_address': 'a:1', 'process_count': 2, 'process_index': -1},
      '--process_index is -1',
    ),
    ({'heartbeat_timeout': 1}, '--heartbeat_timeout is 1'),
    ({'initialization_timeout': 0}, '--initialization_timeout is 0'),
  ],
)
def test_flags_that_do_not_fit(values, words):
  chosen = types.SimpleNamespace(**FLAGS | values)
  with pytest.raises(errors.UserError) as error:
    with hosts.joined(chosen):
      pass
  assert words in str(error.value)


def test_no_cluster_that_jax_knows(monkeypatch):
  def initialize(**options):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  chosen = types.SimpleNamespace(**FLAGS | {'multiprocess_gpu': True})
  with pytest.raises(errors.UserError, match='JAX finds no other hosts here'):
    with hosts.joined(chosen):
      pass
  # On a machine that may be a slice's only host, no error.
  monkeypatch.setattr(hosts, '_may_be_a_pod', lambda: True)
  with hosts.joined(types.SimpleNamespace(**FLAGS)):
    pass
