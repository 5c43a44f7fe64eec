"""Which of the processes of a run are there, over a plain connection to host 0.

JAX's own runtime ends a process with a stack trace when another one is
missing, dies or cannot be reached, after minutes, and does not always say
which one. Here every process holds a connection to process 0 from before the
run to its end. A process that dies closes it, one that hangs stops sending;
process 0 tells all others, and each prints one sentence and ends.

Messages are lines of JSON: `hello` (who), `go` (all are there), `beat`,
`stop` (why all must end), `bye`.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from t5x_variants import errors

# Seconds between two signs of life.
BEAT = 2.0


class Line:
  """A connection on which lines of JSON go both ways."""

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._lock = threading.Lock()
    self._received = b''

  def send(self, kind: str, **values) -> None:
    """Sends one message; a connection that is gone is no error."""
    text = json.dumps({'kind': kind, **values}) + '\n'
    try:
      with self._lock:
        self._connection.sendall(text.encode())
    except OSError:
      pass  # Whoever reads the other way notices.

  def receive(self, timeout: float) -> dict | None:
    """The next message; None when the other end is gone.

    Raises:
      TimeoutError: nothing came for so many seconds.
    """
    self._connection.settimeout(timeout)
    while b'\n' not in self._received:
      try:
        part = self._connection.recv(65536)
      except TimeoutError:
        raise
      except OSError:
        return None
      if not part:
        return None
      self._received += part
    line, _, self._received = self._received.partition(b'\n')
    try:
      message = json.loads(line)
    except ValueError:
      return None  # Not one of ours.
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    """Closes the connection."""
    self._connection.close()


def _end_process(sentence: str, status: int) -> None:
  """Prints the sentence and ends: the main thread may wait for the dead."""
  print(f'error: {sentence}', file=sys.stderr, flush=True)
  # What was sent must arrive before the connection is gone.
  time.sleep(1)
  os._exit(status)


class Peers:
  """The connections of one process; made by `gather`."""

  def __init__(
    self,
    index: int,
    count: int,
    silence: float,
    on_loss: Callable[[str, int], None] = _end_process,
  ):
    """Makes an unconnected one.

    Args:
      index: of this process.
      count: of processes.
      silence: seconds without a sign of life after which one counts as dead.
      on_loss: called with a sentence and an exit status when all must end.
    """
    self._index, self._count = index, count
    self._silence = silence
    self._on_loss = on_loss
    self._lines: dict[int, Line] = {}
    self._names = {index: socket.gethostname()}
    self._lock = threading.Lock()
    self._verdict = threading.Event()
    self._closing = False

  def name(self, index: int) -> str:
    """A process as a person looks for it: 'host 1 of 4 (t1v-n-1)'."""
    name = self._names.get(index)
    return f'host {index} of {self._count}' + (f' ({name})' if name else '')

  def gather_as_first(self, listener: socket.socket, timeout: float) -> None:
    """Waits for all others; tells them to go, or why not.

    Raises:
      errors.UserError: not all came, or two say they are the same.
    """
    deadline = time.monotonic() + timeout
    try:
      while len(self._lines) < self._count - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        line = Line(listener.accept()[0])
        try:
          hello = line.receive(5.0)
        except TimeoutError:
          hello = None
        if hello and hello.get('kind') == 'hello':
          self._welcome(line, hello)
        else:
          line.close()
    except TimeoutError:
      missing = sorted(set(range(1, self._count)) - set(self._lines))
      self._refuse(
        f'after {timeout:.0f} s host(s) {", ".join(map(str, missing))} of '
        f'{self._count} are missing: they were not started, or cannot reach '
        f'host 0 ({self._names[0]}). Start the same command on every host, '
        'each with a --process_index of its own.'
      )
    except errors.UserError as error:
      self._refuse(str(error))
    finally:
      listener.close()
    for line in self._lines.values():
      line.send('go', names=self._names)

  def _welcome(self, line: Line, hello: dict) -> None:
    index, count, name = (hello.get(k) for k in ('index', 'count', 'name'))
    if count != self._count or not 0 < index < self._count:
      sentence = (
        f'host {name} says it is process {index} of {count}, and host 0 '
        f'({self._names[0]}) expects {self._count} processes: give every host '
        'the same --process_count.'
      )
    elif index in self._lines:
      sentence = (
        f'both {self._names[index]} and {name} say they are process {index} '
        f'of {self._count}: give every host a --process_index of its own.'
      )
    else:
      self._lines[index], self._names[index] = line, name
      return
    line.send('stop', sentence=sentence, status=2)
    line.close()
    raise errors.UserError(sentence)

  def _refuse(self, sentence: str) -> None:
    for line in self._lines.values():
      line.send('stop', sentence=sentence, status=2)
      line.close()
    raise errors.UserError(sentence)

  def gather_as_other(self, host: str, port: int, timeout: float) -> None:
    """Connects to process 0 and waits until all are there.

    Raises:
      errors.UserError: it cannot be reached, or not all came.
    """
    deadline = time.monotonic() + timeout
    line = _connect(host, port, deadline, timeout)
    self._lines[0] = line
    line.send(
      'hello',
      index=self._index,
      count=self._count,
      name=self._names[self._index],
    )
    try:
      # A little longer than host 0, whose word names who is missing.
      answer = line.receive(max(1.0, deadline - time.monotonic()) + 10.0)
    except TimeoutError:
      answer = None
    if answer is None or answer['kind'] != 'go':
      line.close()
      raise errors.UserError(
        (answer or {}).get('sentence')
        or f'Host 0 at {host} ended, or went silent, before all hosts had '
        'come: its own log says why.'
      )
    self._names |= {int(i): name for i, name in answer['names'].items()}

  def watch(self) -> None:
    """Begins to send and to look for signs of life."""
    threading.Thread(target=self._beat, daemon=True).start()
    for index, line in self._lines.items():
      threading.Thread(
        target=self._listen, args=(index, line), daemon=True
      ).start()

  def _beat(self) -> None:
    while not self._verdict.wait(BEAT):
      for line in list(self._lines.values()):
        line.send('beat')

  def _listen(self, index: int, line: Line) -> None:
    """Reads what one other sends, until it ends."""
    while True:
      try:
        message = line.receive(self._silence)
        reason = 'died'
      except TimeoutError:
        message, reason = None, f'has been silent for {self._silence:.0f} s'
      if message is None:
        break
      if message['kind'] == 'bye':
        return
      if message['kind'] == 'stop':
        self._decide(message['sentence'], message['status'])
        return
    if not self._closing:
      self._decide(
        f'{self.name(index)} {reason}, so all hosts stop. Start the same '
        'command again on all hosts: the run goes on from its last '
        'checkpoint.',
        1,
      )

  def _decide(self, sentence: str, status: int) -> None:
    """The first reason to end is the one that all hosts get."""
    with self._lock:
      if self._verdict.is_set():
        return
      self._verdict.set()
    if self._index == 0:
      for line in self._lines.values():
        line.send('stop', sentence=sentence, status=status)
    self._on_loss(sentence, status)

  def fail(self, sentence: str, status: int, patience: float) -> None:
    """Ends all hosts, because this one cannot go on.

    Args:
      sentence: why.
      status: the exit status of all.
      patience: seconds to wait first: if another host has died, what failed
        here is only a consequence, and this process ends by that reason.
    """
    if self._verdict.wait(patience):
      time.sleep(60)  # Another thread is ending the process.
    sentence = f'{self.name(self._index)}: {sentence}'
    if self._index:
      self._lines[0].send('stop', sentence=sentence, status=status)
      # Host 0 tells the others; and comes back here.
      self._verdict.wait(10)
      time.sleep(1)
    self._decide(sentence, status)

  def close(self) -> None:
    """Says that this process has done its work."""
    self._closing = True
    for line in self._lines.values():
      line.send('bye')


def listen(port: int) -> socket.socket:
  """Opens process 0's end, on all interfaces; port 0 takes any.

  Raises:
    errors.UserError: the port is taken.
  """
  try:
    return socket.create_server(('', port), backlog=1024)
  except (OSError, OverflowError) as error:
    raise errors.UserError(
      f'Port {port} of this host cannot be opened ({error}): another process '
      'has it, maybe a second one with --process_index=0. Choose another port '
      'in --coordinator_address, the same on all hosts; it and the next one '
      'are used.'
    ) from error


def _connect(host: str, port: int, deadline: float, timeout: float) -> Line:
  while True:
    try:
      left = max(0.1, deadline - time.monotonic())
      connection = socket.create_connection((host, port), timeout=left)
      connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
      return Line(connection)
    except (OSError, OverflowError) as error:
      if time.monotonic() > deadline - 0.5:
        raise errors.UserError(
          f'Host 0 cannot be reached at {host}:{port} within {timeout:.0f} s '
          f'({error}): check --coordinator_address, that host 0 was started, '
          'and that its firewall lets this port and the one before it through.'
        ) from error
      time.sleep(0.25)
