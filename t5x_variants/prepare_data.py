"""Tokenizes a corpus to disk, for training without TensorFlow.

  python -m t5x_variants.prepare_data \
    --gin_file=gin/data/text_files.gin --gin.TEXT_FILES="'/data/*.txt'" \
    --output=/data/prepared

Runs the task of a data file up to its tokens. Training then reads them with
gin/data/prepared.gin and --gin.PREPARED_DATA. Several processes share the work
(--workers). The command may be stopped at any time and goes on when it is given
again; a folder counts as prepared when its info.json, which is written last, is
there.
"""

import concurrent.futures
import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import gin
from absl import flags

from t5x_variants import errors, logs, paths
from t5x_variants.cli import gin_utils
from t5x_variants.data import config as data_config

gin_utils.define_flags()
flags.DEFINE_string('output', None, 'The folder of the prepared data to be.')
flags.DEFINE_integer(
  'workers',
  0,
  'Processes that write; 0: as many as there are cores and work for.',
)
FLAGS = flags.FLAGS

_CONFIG = """
from __gin__ import dynamic_registration
from t5x_variants.data.prepared import writer

writer.configure:
  mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  output = %OUTPUT
"""
_SECONDS_BETWEEN_LINES = 2.0


def main() -> None:
  """Reads the gin files and prepares, or with --dry_run tells what it would."""
  logs.quiet()
  if not FLAGS.output:
    raise errors.UserError('--output=DIR is missing: the folder to write to.')
  if FLAGS.workers < 0:
    raise errors.UserError(
      f'--workers={FLAGS.workers}: take 1 or more, or 0 for as many as there'
      ' are cores.'
    )
  arguments = (
    FLAGS.gin_file,
    [*FLAGS.gin_bindings, f'OUTPUT={FLAGS.output!r}'],
    FLAGS.gin_search_paths,
  )
  configure = _configured(*arguments)
  if FLAGS.dry_run:
    print(gin.config_str())
    print('# every macro has a value')
    return
  from t5x_variants.data.prepared import format as prepared_set
  from t5x_variants.data.prepared import writer

  work = configure()
  _check_output(work.output)
  with _alone(work):
    begun = time.perf_counter()
    missing = writer.begin(work)
    if missing is None:
      logs.say(f'{work.output} is prepared already.')
      return
    _write(work, missing, arguments)
    info = writer.finish(work)
  for name, split in info.splits.items():
    logs.say(
      f'{name}: {split.examples:,} examples of up to {info.chunk_length} tokens'
      f' ({split.tokens:,} in all), {len(split.shards)} file(s)'
    )
  _warn_of_few(info)
  logs.say(
    f'{work.output}/{prepared_set.INFO} written after'
    f' {time.perf_counter() - begun:.1f} s.'
  )


def _warn_of_few(info) -> None:
  """Says so where what is held out is too little to evaluate on."""
  held_out = info.splits.get('validation')
  if held_out is None:
    logs.say('WARNING: The task has no split to validate on.')
    return
  tokens = info.target_tokens('validation')
  if few := data_config.few_target_tokens(tokens):
    logs.say(
      f'WARNING: What is held out has {held_out.examples:,} examples and'
      f' {held_out.tokens:,} tokens. {few}'
    )


def _configured(gin_files, bindings, search_paths):
  """`writer.configure` as the files configure it."""
  gin.parse_config(_CONFIG)
  gin_utils.parse(gin_files, bindings, search_paths)
  from t5x_variants.data.prepared import writer

  return gin_utils.configured(writer.configure)


def _check_output(output: str) -> None:
  """Refuses a folder that holds something else than prepared data."""
  from t5x_variants.data.prepared import format as prepared_set
  from t5x_variants.data.prepared import writer

  ours = {prepared_set.INFO, writer.PROGRESS}
  names = set(os.listdir(output)) if os.path.isdir(output) else set()
  if names and not ours & names:
    raise errors.UserError(
      f'--output={output} holds something else, such as {min(names)}: give a '
      'new folder.'
    )


@contextlib.contextmanager
def _alone(work):
  """Keeps a second preparation out of a local folder."""
  if paths.is_remote(work.output):
    yield
    return
  try:
    os.makedirs(work.output, exist_ok=True)
    descriptor = os.open(work.output, os.O_RDONLY)
  except OSError as error:
    raise errors.UserError(
      f'--output={work.output} cannot be written to ({errors.reason(error)}):'
      ' give a folder of your own.'
    ) from error
  try:
    # Given up with the process, however it ends.
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  except BlockingIOError as error:
    raise errors.UserError(
      f'{work.output} is being prepared by another process: wait for it, or'
      ' give another --output.'
    ) from error
  finally:
    os.close(descriptor)


def _write(work, missing, arguments) -> None:
  """Writes the missing shards, here or in processes of their own."""
  from t5x_variants.data.prepared import writer

  # A process costs seconds to start: not for two files.
  workers = FLAGS.workers or min(os.cpu_count() or 1, len(missing) // 2)
  workers = min(workers, len(missing))
  progress = _Progress(len(missing), len(work.work()))
  if workers <= 1:
    for split, index in missing:
      writer.write_shard(work, split, index, progress.add)
      progress.shards += 1
    return
  context = multiprocessing.get_context('spawn')
  counter = context.Value('q', 0)
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, _start_worker, (arguments, counter)
  ) as pool:
    # Ctrl-C reaches every process of a terminal; this one ends the others,
    # which are started with it blocked. What comes meanwhile comes after.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    waiting = {pool.submit(_write_in_worker, *shard) for shard in missing}
    try:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
      while waiting:
        done, waiting = concurrent.futures.wait(
          waiting, _SECONDS_BETWEEN_LINES, concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          future.result()
        progress.shards += len(done)
        progress.add(counter.value - progress.examples)
    except KeyboardInterrupt:
      # Leaving the pool would wait for the files that are being written.
      for worker in multiprocessing.active_children():
        worker.terminate()
      raise
    except concurrent.futures.BrokenExecutor as error:
      raise errors.UserError(
        'A process that prepared data was killed (out of memory?): run the'
        f' same command again with fewer than --workers={workers}; what is'
        ' whole is kept.'
      ) from error
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


class _Progress:
  """The line that tells how far it is."""

  def __init__(self, missing: int, total: int):
    self.shards = self.examples = 0
    self._missing, self._total = missing, total
    self._begun = self._said = time.monotonic()

  def add(self, examples: int) -> None:
    """Counts, and now and then says so."""
    self.examples += examples
    now = time.monotonic()
    if not self.examples or now - self._said < _SECONDS_BETWEEN_LINES:
      return
    self._said, seconds = now, now - self._begun
    left = 'time left unknown'
    if self.shards:
      rest = seconds / self.shards * (self._missing - self.shards)
      left = f'about {rest:,.0f} s left'
    done = self._total - self._missing + self.shards
    logs.say(
      f'{done} of {self._total} files, {self.examples:,} examples,'
      f' {self.examples / seconds:,.0f} a second, {left}'
    )


_worker: dict[str, Any] = {}


def _start_worker(arguments, counter) -> None:
  """In a worker: looks at the task, as its parent did."""
  logs.quiet()
  threading.Thread(target=_die_with_parent, daemon=True).start()
  _worker['work'] = _configured(*arguments)()
  _worker['counter'] = counter


def _die_with_parent() -> None:
  if parent := multiprocessing.parent_process():
    parent.join()
    os._exit(1)


def _write_in_worker(split: str, index: int) -> None:
  from t5x_variants.data.prepared import writer

  def report(examples):
    with _worker['counter'].get_lock():
      _worker['counter'].value += examples

  writer.write_shard(_worker['work'], split, index, report)


if __name__ == '__main__':
  gin_utils.run(main)
