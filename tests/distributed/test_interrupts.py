"""Ctrl-C while a run starts."""

import os
import signal
import sys
import weakref

import pytest

from t5x_variants import logs
from t5x_variants.distributed import interrupts


@pytest.fixture
def noting(monkeypatch):
  """`interrupts.note` is in force, and all is as before afterwards."""
  monkeypatch.setattr(interrupts, '_noted', False)
  # As every command begins.
  monkeypatch.setattr(sys, 'unraisablehook', logs._unraisable)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  interrupts.note()
  yield
  signal.signal(signal.SIGINT, before)


def press():
  os.kill(os.getpid(), signal.SIGINT)


def test_one_that_python_ignores_is_known(noting, capsys):
  interrupts.check()

  class Thing:
    pass

  thing = Thing()
  reference = weakref.ref(thing, lambda _: press())
  del thing
  assert reference() is None, 'the callback has run and its exception is lost'
  assert 'Traceback' not in capsys.readouterr().err
  with pytest.raises(KeyboardInterrupt):
    interrupts.check()


def test_it_interrupts_at_once_and_again(noting):
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      press()


def test_a_handler_of_the_caller_s_own_stays():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    interrupts.note()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)
