"""SIGTERM and Ctrl-C ask a run to save and end; a second one ends it at once.

A machine that is taken away, or a person at a terminal, sends the signal to any
one process. Of several, JAX's coordination service carries SIGTERM to all and
finds a step that none has passed; without a signal that costs nothing.
"""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """A context in which the two signals are taken; true once one has come."""

  def __init__(self):
    self.signal_name = ''
    self._previous = {}

  def __bool__(self) -> bool:
    return bool(self.signal_name)

  def reached(self, step: int) -> bool:
    """Whether all processes are to stop after this step; asked at each."""
    if jax.process_count() == 1:
      return bool(self)
    if not multihost_utils.reached_preemption_sync_point(step):
      return False
    self.signal_name = self.signal_name or 'SIGTERM'
    return True

  def __enter__(self) -> 'StopRequest':
    # Python delivers signals to the main thread alone; elsewhere (a notebook's
    # worker, a test) the caller's own handling stays.
    if threading.current_thread() is threading.main_thread():
      taken = [signal.SIGINT]
      if jax.process_count() == 1:
        taken.append(signal.SIGTERM)  # Else it is JAX's.
      for number in taken:
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *unused) -> None:
    self._restore()

  def _on_signal(self, number, unused_frame) -> None:
    self.signal_name = signal.Signals(number).name
    self._restore()
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self) -> None:
    while self._previous:
      signal.signal(*self._previous.popitem())
