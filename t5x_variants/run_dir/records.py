"""What a run writes down: metrics.jsonl, TensorBoard events, progress lines.

`metrics.jsonl` has one JSON object a line; after a restart every step stands
in it once. Losses are in nats per target token.
"""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from t5x_variants import errors, logs, paths
from t5x_variants.run_dir import events, remote

_log = logging.getLogger('t5x_variants')
_BLOCK = 1 << 16


def per_token(sums: Mapping[str, float]) -> dict[str, float]:
  """Averages from sums over target tokens (see losses.cross_entropy)."""
  tokens = max(float(sums['weights']), 1.0)
  return {
    'loss': float(sums['loss']) / tokens,
    'z_loss': float(sums['z_loss']) / tokens,
    'accuracy': float(sums['correct']) / tokens,
  }


class RunWriter:
  """Appends records to metrics.jsonl and to TensorBoard's event file.

  A record that cannot be written is tried again with the next one; `flush`,
  which comes before each checkpoint, raises if that was in vain: no checkpoint
  is written without the records before it. Events never stop a run.
  """

  def __init__(self, model_dir: str | os.PathLike, first_step: int = 0):
    """Opens the files of a run that goes on from `first_step`.

    Args:
      model_dir: the run directory.
      first_step: records of later steps are dropped: the run that wrote them
        ended before its next checkpoint, and they will be written again. At
        0 that is all of them: step 0 is evaluated again, too.

    Raises:
      errors.UserError: the files cannot be written.
    """
    folder, self._mirror = paths.folder(model_dir), None
    if paths.is_remote(model_dir):
      self._mirror = remote.Mirror(folder)
      self._mirror.fetch('metrics.jsonl')
      folder = self._mirror.local
    self._path = folder / 'metrics.jsonl'
    first_written = first_step + 1 if first_step else 0
    try:
      # The records that tell when the run began and how long its steps took.
      self.earlier: Sequence[Mapping] = _drop_from(self._path, first_written)
    except OSError as error:
      raise self._unwritable(error) from error
    self._records = events.Appended(self._path)
    self._events = events.Events(folder, first_written)

  def __enter__(self) -> 'RunWriter':
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Writes what is left; says so if it cannot, but for another error."""
    # The error that ends the run is the one to tell.
    hidden = (errors.UserError,) if kind else ()
    with contextlib.suppress(*hidden):
      self.close()

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one record; `split` is 'train', 'eval' or 'test'."""
    record = {'step': step, 'split': split, 'time': time.time(), **values}
    if error := self._records.add((json.dumps(record) + '\n').encode()):
      _log.warning(
        'The record of step %d cannot be written to %s (%s); it is kept in '
        'memory until the next checkpoint.',
        step,
        self._path,
        errors.reason(error),
      )
    self._events.scalars(step, split, values)
    if self._mirror:
      with contextlib.suppress(OSError):
        self._mirror.copy(at_once=False)

  def flush(self) -> None:
    """Writes all records to where they stay: a checkpoint is to follow.

    Raises:
      errors.UserError: they cannot be written.
    """
    self._events.flush()
    try:
      self._records.flush()
      if self._mirror:
        self._mirror.copy()
    except OSError as error:
      raise self._unwritable(error) from error

  def write_text(self, name: str, text: str) -> None:
    """Shows a text (the configuration) in TensorBoard."""
    self._events.text(name, text)

  def close(self) -> None:
    """Writes what is left and closes the files.

    Raises:
      errors.UserError: it cannot be written.
    """
    try:
      self.flush()
    finally:
      self._records.close()
      self._events.close()
      if self._mirror:
        with contextlib.suppress(OSError):
          self._mirror.close()

  def _unwritable(self, error: OSError) -> errors.UserError:
    return errors.UserError(
      f'Records cannot be written to {self._path}: {errors.reason(error)}. '
      'The checkpoints are intact; make room, then start the same command '
      'again.'
    )


def _drop_from(path: pathlib.Path, step: int) -> list[dict]:
  """Cuts off the records from `step` on, and lines that are no records there.

  Only the end of the file is read, back to the last training record that
  stays.

  Returns:
    The first record, the last training record that stays, and the first
    training record that is dropped, as far as there are such.
  """
  if not path.exists():
    return []
  with path.open('r+b') as file:
    first = _record(file.readline())
    keep = file.seek(0, os.SEEK_END)
    seen = [] if first is None else [first]
    bad, dropped, cutting = 0, None, True
    for start, end, line in _lines_backwards(file):
      record = _record(line)
      if cutting and (record is None or record['step'] >= step):
        keep = start
        bad += record is None and line.endswith(b'\n') and bool(line.strip())
        if record is not None and record['split'] == 'train':
          dropped = record
        continue
      if cutting:
        cutting, keep = False, end
      if record is not None and record['split'] == 'train':
        seen += [record] if start else []  # The first one is there.
        break
    if bad:
      _log.warning(
        '%d line(s) at the end of %s are no records and were left out.',
        bad,
        path,
      )
    file.truncate(keep)
    # A record whose line end was lost would be joined with the next one.
    if keep:
      file.seek(keep - 1)
      if file.read(1) != b'\n':
        file.write(b'\n')
  return seen + ([] if dropped is None else [dropped])


def _lines_backwards(file) -> Iterator[tuple[int, int, bytes]]:
  """Lines of a file from the last to the first: begin, end and bytes."""
  position = file.seek(0, os.SEEK_END)
  rest = b''
  while position:
    size = min(_BLOCK, position)
    position -= size
    file.seek(position)
    rest = file.read(size) + rest
    lines = rest.splitlines(keepends=True)
    # The first of them may begin before this block.
    whole = lines if not position else lines[1:]
    end = position + len(rest)
    for line in reversed(whole):
      yield end - len(line), end, line
      end -= len(line)
    rest = b'' if not position else lines[0]


def _record(line: bytes) -> dict | None:
  """A line as a record; None if it is none: cut, or damaged."""
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):
    return None
  is_record = (
    isinstance(found, dict)
    and type(found.get('step')) is int
    and isinstance(found.get('split'), str)
    and isinstance(found.get('time'), int | float)
  )
  return found if is_record else None


def read(run: str | os.PathLike, split: str | None = None) -> list[dict]:
  """The records of a run directory, of one split or of all.

  Lines that are no records are left out, which the log says; but a last line
  without its end is one that a run is just writing.

  Raises:
    errors.UserError: the folder has no metrics.jsonl, or it cannot be read.
  """
  path = paths.folder(run) / 'metrics.jsonl'
  if not path.exists():
    raise errors.UserError(
      f'{run} is no run directory: it has no metrics.jsonl.'
    )
  try:
    with path.open('rb') as file:
      # Not parsed at all where the split cannot be the one wanted.
      mark = f'"{split}"'.encode() if split else b''
      lines = [line for line in file if mark in line or b'"split"' not in line]
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be read: {errors.reason(error)}.'
    ) from error
  found = [_record(line) for line in lines]
  damaged = sum(
    not record and bool(line.strip()) and line.endswith(b'\n')
    for record, line in zip(found, lines, strict=True)
  )
  if damaged and any(found):
    logs.say(f'{path}: {damaged} line(s) are no records and are left out.')
  return [r for r in found if r and split in (None, r['split'])]


def last_step(run: str | os.PathLike) -> int | None:
  """The step of a run's last record; None without one."""
  path = paths.folder(run) / 'metrics.jsonl'
  if not path.exists():
    return None
  with path.open('rb') as file:
    for _, _, line in _lines_backwards(file):
      if record := _record(line):
        return record['step']
  return None


def evaluations(run: str | os.PathLike, until: int) -> list[dict]:
  """The 'eval' records of a run up to a step, of none if it is new."""
  if not (paths.folder(run) / 'metrics.jsonl').exists():
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


class Writer(Protocol):
  """What takes the records of a run: a `RunWriter`, or a `NoWriter`."""

  earlier: Sequence[Mapping]

  def __enter__(self) -> object:
    """Of a context; what it returns is not used."""

  def __exit__(self, *error) -> None:
    """Writes what is left."""

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one record."""

  def write_text(self, name: str, text: str) -> None:
    """Writes a text for TensorBoard."""

  def flush(self) -> None:
    """Writes what is pending, or raises."""


class NoWriter(contextlib.nullcontext):
  """In place of a `RunWriter` on all hosts but the first."""

  earlier: Sequence[Mapping] = ()

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Does nothing."""

  def write_text(self, name: str, text: str) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""
