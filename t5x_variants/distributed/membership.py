"""Gives each of several hosts a last line: why it ends, and what to do.

JAX's coordination service decides which hosts are alive. When one is not, it
ends the processes of all others by abort() from a thread of C++, where no
Python code can run any more. A small second process therefore holds the
sentence that fits, and prints it if this process ends without one. The
service's key-value store carries the rest: the sentence of a host that cannot
go on, with which all hosts end, and a counter of each host, so that a host
whose counter stands still can be named. The counters never end a run.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed  # As orbax does; it has no public name.

# The shortest heartbeat timeout in seconds, for JAX's own heartbeats and ours.
SHORTEST = 5
# Seconds by which JAX's own limit of a start is later than ours: JAX would
# abort without saying that a host is missing.
_LATER = 60
_KEYS = 't5x_variants'
_FAILURE = f'{_KEYS}/failure'
_AGAIN = (
  'Start the same command again on all hosts: the run goes on from its last '
  'checkpoint.'
)
_PRINT_LAST_LINE = """
import sys
line = ''
for line in sys.stdin:
  pass
sys.stderr.write(line.strip() and f'error: {line}')
"""


class LastLine:
  """The line that is printed when this process ends, however it ends."""

  def __init__(self):
    # In a session of its own, so that no signal to this process ends it too.
    printer = subprocess.Popen(
      [sys.executable, '-I', '-S', '-c', _PRINT_LAST_LINE],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
      text=True,
    )
    assert printer.stdin is not None
    self._printer, self._input = printer, printer.stdin

  def set(self, sentence: str) -> None:
    """Replaces the line; '' prints nothing."""
    with contextlib.suppress(OSError):  # The printer was killed.
      self._input.write(sentence + '\n')
      self._input.flush()

  def close(self) -> None:
    """Prints nothing, and ends the printer."""
    self.set('')
    with contextlib.suppress(OSError):
      self._input.close()
    self._printer.wait()


def _end(last: LastLine, sentence: str, status: int) -> NoReturn:
  """Prints the sentence and ends the process, whatever other threads do."""
  last.close()
  print(f'error: {sentence}', file=sys.stderr, flush=True)
  os._exit(status)


def join(
  address: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  timeout: float,
  silence: int,
) -> 'Member | None':
  """Initialises JAX's distributed runtime; ends the process if that fails.

  Args:
    address: HOST:PORT of process 0; None: JAX is to find all three.
    count: the number of processes.
    index: which one this is.
    timeout: seconds to wait for all hosts.
    silence: seconds without a sign of life after which a host counts as dead.

  Returns:
    None if JAX has found one process only.

  Raises:
    ValueError: no address was given, and JAX finds none.
  """
  last = LastLine()
  last.set(
    'This host was stopped while it waited for the others, or JAX ended it for '
    'the reason above: two hosts may have the same --process_index, or not all '
    'the same --process_count. Start the same command on every host, each '
    'with a --process_index of its own.'
  )
  timer = threading.Timer(timeout, _give_up, (last, timeout))
  timer.daemon = True
  timer.start()
  # Python does not see Ctrl-C while JAX waits in C++: let it end the process.
  on_interrupt = signal.getsignal(signal.SIGINT)
  if callable(on_interrupt):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=count,
      process_id=index,
      initialization_timeout=int(timeout) + _LATER,
      heartbeat_timeout_seconds=silence,
      shutdown_timeout_seconds=2 * silence,
    )
  except BaseException:
    last.close()
    raise
  finally:
    timer.cancel()
    if callable(on_interrupt):
      signal.signal(signal.SIGINT, on_interrupt)
  if distributed.global_state.num_processes == 1:
    last.close()
    return None
  return Member(last, silence)


def _give_up(last: LastLine, timeout: float) -> NoReturn:
  """Ends a start for which not all hosts have come."""
  state = distributed.global_state
  _end(
    last,
    f'{_name(state.process_id, socket.gethostname())} has waited '
    f'{timeout:.0f} s, and not all {state.num_processes} hosts have come: the '
    'missing ones were not started, cannot reach host 0 at '
    f'{state.coordinator_address}, or have the --process_index of another. '
    'Start the same command on every host, each with a --process_index of its '
    'own.',
    2,
  )


def _name(index: int, hostname: str) -> str:
  """Names a host as its log does: 'host 1 of 4 (t1v-n-1)'."""
  name = f'host {index} of {distributed.global_state.num_processes}'
  return f'{name} ({hostname})' if hostname else name


class Member:
  """This process as one of several."""

  def __init__(self, last: LastLine, silence: float):
    """Starts the thread that watches the other hosts.

    Args:
      last: prints the line with which this process ends.
      silence: seconds without a sign of life after which JAX ends all others.
    """
    state = distributed.global_state
    assert state.client is not None
    self._client, self._index = state.client, state.process_id
    self._others = set(range(state.num_processes)) - {self._index}
    self._last, self._silence = last, silence
    self._hostname = socket.gethostname()
    self.name = _name(self._index, self._hostname)
    # By index: the newest counter and name of a host, and when they were read.
    self._beats: dict[int, tuple[str, float]] = {}
    self._silent = ''  # The sentence that names the silent hosts.
    self._leaving = threading.Event()
    self._set_last_line()
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()

  def fail(self, sentence: str, status: int, *, may_follow: bool) -> NoReturn:
    """Ends all hosts, because this one cannot go on.

    Args:
      sentence: why.
      status: exit status of all.
      may_follow: whether another host's death may be the cause. Then this
        waits until a silent host can be named, and the sentence names it.
    """
    until = time.monotonic() + self._silence / 2
    while may_follow and not self._silent and time.monotonic() < until:
      time.sleep(0.1)
    sentence = f'{self.name}: {sentence[:2000]}'
    if may_follow and self._silent:
      sentence, status = self._silent, 1
    # An error of JAX: another host has failed first, or host 0 is gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(_FAILURE, f'{status} {sentence}')
    # The watcher reads the sentence, as on all hosts, and ends this process.
    time.sleep(self._silence)
    _end(self._last, sentence, status)

  def leave(self) -> None:
    """Ends the membership on all hosts together, on host 0 last."""
    self._leaving.set()
    self._watcher.join()
    jax.distributed.shutdown()
    self._last.close()

  def _watch(self) -> None:
    beat = self._silence / 20
    for count in itertools.count():
      try:
        self._client.key_value_set(
          f'{_KEYS}/{self._index}',
          f'{count} {self._hostname}',
          allow_overwrite=True,
        )
        found = dict(self._client.key_value_dir_get(_KEYS))
      except jax.errors.JaxRuntimeError:
        found = {}  # Host 0 is gone, and JAX ends this process.
      if _FAILURE in found:
        status, _, sentence = found[_FAILURE].partition(' ')
        if self._index == 0:
          time.sleep(3 * beat)  # The store ends with this process.
        _end(self._last, sentence, int(status) if status.isdecimal() else 1)
      self._look(found)
      if self._leaving.wait(beat):
        return

  def _look(self, found: dict[str, str]) -> None:
    """Finds the silent hosts in what is in the store; nothing if it is gone."""
    now = time.monotonic()
    for index in self._others:
      beat = found.get(f'{_KEYS}/{index}')
      if beat and beat != self._beats.get(index, ('', now))[0]:
        self._beats[index] = beat, now
    names = ', '.join(
      _name(index, beat.partition(' ')[2])
      for index, (beat, read) in sorted(self._beats.items())
      if found and now - read > self._silence / 3
    )
    silent = names and f'{names} died or hangs, so all hosts stop. {_AGAIN}'
    if silent != self._silent:
      self._silent = silent
      self._set_last_line()

  def _set_last_line(self) -> None:
    why = 'because host 0 died or cannot be reached'
    if self._index == 0:
      why = 'for the reason above'
    self._last.set(
      self._silent or f'{self.name} was killed, or JAX ended it {why}. {_AGAIN}'
    )
