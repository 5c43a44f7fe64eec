"""Runs the processes of a sweep, as many at a time as wanted.

Each run is a process of its own, whose output goes to log.txt in its run
directory, beside command.txt, the command. A lock in that directory is the
process's for as long as it lives, so that another sweep waits for it.
"""

import dataclasses
import fcntl
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from t5x_variants import errors, logs
from t5x_variants.analysis import sweeps
from t5x_variants.distributed import preemption

PROGRAM = [sys.executable, '-m', 't5x_variants.train']
_POLL_SECONDS = 0.2


@dataclasses.dataclass
class Child:
  """A run that is under way."""

  run: sweeps.Run
  process: subprocess.Popen
  begun: float


class Scheduler:
  """The runs of a sweep, and where each stands."""

  def __init__(self, planned: list[sweeps.Run], processes: int, folder: str):
    self._processes = processes
    self._environment = _environment(folder)
    self._finished = {run.name for run in planned if run.finished()}
    self._waiting = [run for run in planned if run.name not in self._finished]
    self._children: list[Child] = []
    self._busy: set[str] = set()
    self._seconds: dict[str, list[float]] = {}  # By stage.
    self._total = len(planned)
    self.failed: dict[str, str] = {}

  def run(self) -> str:
    """Runs what is left; the name of the signal that ended it, or ''."""
    if self._finished:
      logs.say(
        f'{len(self._finished)} of {self._total} runs are finished already.'
      )
    with preemption.StopRequest() as stop:
      while self._waiting or self._children:
        if stop:
          self._pass_on(stop.signal_name)
          break
        self._reap()
        self._start_what_can()
        time.sleep(_POLL_SECONDS)
    return stop.signal_name

  def _pass_on(self, name: str) -> None:
    """Lets the runs save and end."""
    logs.say(f'{name}: waiting for {len(self._children)} runs to save.')
    for child in self._children:
      child.process.send_signal(getattr(signal, name))
    for child in self._children:
      child.process.wait()

  def _start_what_can(self) -> None:
    for run in list(self._waiting):
      if run.needs in self.failed:
        self._waiting.remove(run)
        self.failed[run.name] = f'not run: it needs {run.needs}'
        continue
      if len(self._children) >= self._processes:
        return
      if run.needs is None or run.needs in self._finished:
        self._start(run)

  def _start(self, run: sweeps.Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / 'sweep.lock').open('a') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        # What a sweep that was killed has started goes on: ask again later.
        if run.name not in self._busy:
          logs.say(f'{run.name} is under way already: waiting for its end.')
          self._busy.add(run.name)
        return
      self._waiting.remove(run)
      if run.finished():
        self._finished.add(run.name)
        return
      (run.folder / 'command.txt').write_text(command(run), encoding='utf-8')
      with (run.folder / 'log.txt').open('a', encoding='utf-8') as log:
        process = subprocess.Popen(
          [*PROGRAM, *run.arguments],
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
          env=self._environment,
          # The lock is the process's for as long as it lives.
          pass_fds=[lock.fileno()],
          # So that Ctrl-C reaches it from here, once.
          start_new_session=True,
        )
    self._children.append(Child(run, process, time.monotonic()))

  def _reap(self) -> None:
    for child in list(self._children):
      status = child.process.poll()
      if status is None:
        continue
      self._children.remove(child)
      name, seconds = child.run.name, time.monotonic() - child.begun
      if status == 0 and child.run.finished():
        self._finished.add(name)
        self._seconds.setdefault(_stage(name), []).append(seconds)
        what = 'finished'
      else:
        what = f'exit status {status}' if status else 'stopped before its end'
        self.failed[name] = f'{what}: {_last_line(child.run.folder)}'
        what = f'FAILED ({what})'
      self._say_progress(f'{name} {what} in {seconds:.0f} s')

  def _say_progress(self, what: str) -> None:
    done = len(self._finished) + len(self.failed)
    left = self._total - done
    about = ''
    if self._seconds and left:
      minutes = self._seconds_left() / self._processes / 60
      about = f', about {minutes:.0f} min'
    logs.say(f'[{done}/{self._total}] {what}; {left} left{about}')

  def _seconds_left(self) -> float:
    """What is left, by the mean of the runs of its stage, or of all."""
    means = {name: statistics.fmean(s) for name, s in self._seconds.items()}
    overall = statistics.fmean(means.values())
    runs = [*self._waiting, *(child.run for child in self._children)]
    return sum(means.get(_stage(run.name), overall) for run in runs)


def _stage(name: str) -> str:
  return name.partition('/')[0]


def _environment(folder: str) -> dict[str, str]:
  """The environment of the runs, which share compiled programs."""
  compiled = os.path.abspath(
    os.path.join(os.path.expanduser(folder), 'compiled')
  )
  cache = {
    'JAX_COMPILATION_CACHE_DIR': compiled,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
  }
  return cache | os.environ


def command(run: sweeps.Run) -> str:
  """A run's command, a line as a shell reads it."""
  return (
    shlex.join(['python', '-m', 't5x_variants.train', *run.arguments]) + '\n'
  )


def check(planned: list[sweeps.Run], folder: str) -> None:
  """Refuses a folder in which the runs cannot be made.

  Args:
    planned: see `sweeps.plan`.
    folder: of the sweep; it is made if it is not there.

  Raises:
    errors.UserError: a run directory is there that another command has made,
      or the folder cannot be written to.
  """
  for run in planned:
    path = run.folder / 'command.txt'
    if not path.exists():
      if (run.folder / 'metrics.jsonl').exists():
        raise errors.UserError(
          f'{run.folder} is a run directory that no sweep has made: give '
          'another folder, --gin.SWEEP_DIR="\'...\'".'
        )
    elif (before := path.read_text(encoding='utf-8')) != command(run):
      raise errors.UserError(
        f'{path} is of another command than this sweep has for it:\n  was '
        f'{before.strip()}\n  now {command(run).strip()}\nGive another folder, '
        '--gin.SWEEP_DIR="\'...\'", or remove what is to be run anew.'
      )
  try:
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise errors.UserError(
      f'SWEEP_DIR {folder} cannot be written to: {errors.reason(error)}. '
      'Choose a folder you may write to.'
    ) from error


def _last_line(folder: pathlib.Path) -> str:
  """The end of a run's log."""
  text = (folder / 'log.txt').read_text(encoding='utf-8', errors='replace')
  lines = text.strip().splitlines() or ['its log is empty']
  return f'{lines[-1][:300]} ({folder / "log.txt"})'
