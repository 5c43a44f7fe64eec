"""Ctrl-C before the training loop: none is lost.

Python raises KeyboardInterrupt wherever the main thread is. In a finalizer or a
callback of a weak reference it prints the exception and goes on, and a run that
was interrupted while it started would train to its end.
"""

import signal
import sys
import threading

_noted = False
_other_hook = sys.unraisablehook


def note() -> None:
  """Takes Ctrl-C from now on: it interrupts as always, and is remembered.

  Only where Python would raise KeyboardInterrupt, in the main thread.
  """
  global _other_hook
  if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
  ):
    signal.signal(signal.SIGINT, _on_interrupt)
    _other_hook, sys.unraisablehook = sys.unraisablehook, _without_interrupts


def check() -> None:
  """Raises the KeyboardInterrupt that Python has ignored, if there is one."""
  if _noted:
    raise KeyboardInterrupt


def _on_interrupt(number, unused_frame) -> None:
  global _noted
  _noted = True
  signal.signal(number, signal.default_int_handler)
  raise KeyboardInterrupt


def _without_interrupts(ignored) -> None:
  if not (_noted and issubclass(ignored.exc_type, KeyboardInterrupt)):
    _other_hook(ignored)
