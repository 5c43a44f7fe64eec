"""SIGTERM and Ctrl-C ask a run to save and end; a second one ends it at once.

Orbax saves on preemption only where `jax.distributed` runs; a machine that is
taken away, or a person at a terminal, sends the signal to any process.
"""

import signal
import threading


class StopRequest:
  """A context in which the two signals are taken; true once one has come."""

  def __init__(self):
    self.signal_name = ''
    self._previous = {}

  def __bool__(self) -> bool:
    return bool(self.signal_name)

  def __enter__(self) -> 'StopRequest':
    # Python delivers signals to the main thread alone; elsewhere (a notebook's
    # worker, a test) the caller's own handling stays.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *unused) -> None:
    self._restore()

  def _on_signal(self, number, unused_frame) -> None:
    self.signal_name = signal.Signals(number).name
    self._restore()

  def _restore(self) -> None:
    while self._previous:
      signal.signal(*self._previous.popitem())
