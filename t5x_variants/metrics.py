"""What a run writes down: metrics.jsonl, TensorBoard events, progress lines.

`metrics.jsonl` has one JSON object a line; after a restart every step stands
in it once. Losses are in nats per target token.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from t5x_variants import errors, remote


def per_token(sums: Mapping[str, float]) -> dict[str, float]:
  """Averages from sums over target tokens (see losses.cross_entropy)."""
  tokens = max(float(sums['weights']), 1.0)
  return {
    'loss': float(sums['loss']) / tokens,
    'z_loss': float(sums['z_loss']) / tokens,
    'accuracy': float(sums['correct']) / tokens,
  }


class RunWriter:
  """Appends records to metrics.jsonl and to TensorBoard's event file."""

  def __init__(self, model_dir: str | os.PathLike, first_step: int = 0):
    """Opens the files of a run that goes on from `first_step`.

    Args:
      model_dir: the run directory.
      first_step: records of later steps are dropped: the run that wrote them
        ended before its next checkpoint, and they will be written again. At
        0 that is all of them: step 0 is evaluated again, too.
    """
    # TensorFlow's own writer costs 0.7 GiB; this one writes the same files.
    import tensorboardX

    folder, self._mirror = remote.folder(model_dir), None
    if remote.is_remote(model_dir):
      self._mirror = remote.Mirror(folder)
      self._mirror.fetch('metrics.jsonl')
      folder = self._mirror.local
    self._path = folder / 'metrics.jsonl'
    first_written = first_step + 1 if first_step else 0
    # What earlier starts of the run wrote, the dropped records too.
    self.earlier = _drop_from(self._path, first_written)
    self._file = self._path.open('a', encoding='utf-8')
    self._events = tensorboardX.SummaryWriter(
      str(folder), purge_step=first_written
    )

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one record; `split` is 'train', 'eval' or 'test'."""
    record = {'step': step, 'split': split, 'time': time.time(), **values}
    try:
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
      for name, value in values.items():
        self._events.add_scalar(f'{split}/{name}', value, step)
      if self._mirror:
        self._mirror.copy(at_once=False)
    except OSError as error:
      raise errors.UserError(
        f'Cannot write the record of step {step} to {self._path}: '
        f'{error.strerror or error}. The checkpoints are intact; make room, '
        'then start the same command again.'
      ) from error

  def flush(self) -> None:
    """Writes all records to where they stay: a checkpoint is to follow."""
    if self._mirror:
      self._events.flush()
      self._mirror.copy()

  def write_text(self, name: str, text: str) -> None:
    """Shows a text (the configuration) in TensorBoard."""
    self._events.add_text(name, '```\n' + text + '\n```', 0)

  def close(self) -> None:
    """Writes what is buffered."""
    self._file.close()
    self._events.close()
    if self._mirror:
      self._mirror.close()


def _drop_from(path: pathlib.Path, step: int) -> list[dict]:
  """Keeps the records before `step`; a half-written last line goes too.

  Returns:
    All records that were there.
  """
  if not path.exists():
    return []
  found, kept = [], []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    found.append(record)
    if record['step'] < step:
      kept.append(line + '\n')
  replacement = path.with_suffix('.jsonl.tmp')
  replacement.write_text(''.join(kept), encoding='utf-8')
  replacement.replace(path)
  return found


def read(run: str | os.PathLike, split: str | None = None) -> list[dict]:
  """The records of a run directory, of one split or of all.

  Raises:
    errors.UserError: the folder has no metrics.jsonl.
  """
  path = remote.folder(run) / 'metrics.jsonl'
  if not path.exists():
    raise errors.UserError(
      f'{run} is no run directory: it has no metrics.jsonl.'
    )
  records = []
  for line in path.read_text(encoding='utf-8').splitlines():
    # A run that is still going on may have half written its last line.
    with contextlib.suppress(json.JSONDecodeError):
      records.append(json.loads(line))
  return [r for r in records if split is None or r['split'] == split]


def evaluations(run: str | os.PathLike, until: int) -> list[dict]:
  """The 'eval' records of a run up to a step, of none if it is new."""
  if not (remote.folder(run) / 'metrics.jsonl').exists():
    return []
  return [r for r in read(run, 'eval') if r['step'] <= until]


class Clock:
  """Wall time of the training loop since the last record."""

  def __init__(self):
    self._start_over()

  def _start_over(self) -> None:
    self._begun = time.perf_counter()
    self._waited = 0.0
    self._paused = 0.0
    self._steps = 0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Around the wait for one step's batch."""
    begun = time.perf_counter()
    yield
    self._waited += time.perf_counter() - begun
    self._steps += 1

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Around what is not training: evaluation, checkpoints."""
    begun = time.perf_counter()
    yield
    self._paused += time.perf_counter() - begun

  def read(self, tokens_per_step: float) -> dict[str, float]:
    """Throughput since the last reading; starts the next one."""
    elapsed = time.perf_counter() - self._begun - self._paused
    # The record of the first step alone, which only compiled.
    steps = max(self._steps, 1)
    values = {
      'seconds_per_step': elapsed / steps,
      'tokens_per_second': tokens_per_step * steps / elapsed,
      'data_wait': self._waited / elapsed,
    }
    self._start_over()
    return values


def progress_line(
  step: int, total_steps: int, values: Mapping[str, float]
) -> str:
  """One line a person reads while training runs; MFU where it is known."""
  left = max(0.0, values['seconds_per_step'] * (total_steps - step))
  hours, rest = divmod(round(left), 3600)
  minutes, seconds = divmod(rest, 60)
  clock = (
    f'{hours}:{minutes:02}:{seconds:02}'
    if hours
    else (f'{minutes}:{seconds:02}')
  )
  line = [
    f'step {step:>{len(str(total_steps))}}/{total_steps}',
    f'loss {values["loss"]:.4f}',
    f'accuracy {values["accuracy"]:6.2%}',
    f'{values["tokens_per_second"]:,.0f} tokens/s',
  ]
  if 'mfu' in values:
    line.append(f'{values["tokens_per_second_per_chip"]:,.0f} a chip')
    line.append(f'MFU {values["mfu"]:.1%}')
  line.append(f'data wait {values["data_wait"]:.1%}')
  if 'goodput' in values:
    line.append(f'goodput {values["goodput"]:.1%}')
  return '  '.join([*line, f'{clock} left'])


class NoWriter:
  """In place of a `RunWriter` on all hosts but the first."""

  earlier = ()

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Does nothing."""

  def write_text(self, name: str, text: str) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


_silent = threading.Event()


def silence() -> None:
  """From now on `say` says nothing: another host does."""
  _silent.set()


def say(line: str) -> None:
  """Prints a line for the person at the terminal, at once."""
  if not _silent.is_set():
    print(line, file=sys.stderr, flush=True)
