"""Disturbs runs in every way that is known, and counts what they lose.

  python tools/torture.py --rounds=200 [--flips=0] [--seed=0] [--processes=2]
    [--folder=DIR]

A very small model is trained once without disturbance. Then runs of the same
command are disturbed, one round after another: killed at any moment and inside
the write of a checkpoint, signalled, their checkpoints damaged, their disk
full, started with other settings, started twice, and trained by two hosts of
which one is killed. After each round the run goes on; at its end its records
must be those of the undisturbed run, number for number, each step once.

Printed for each kind of round, as a table:

  rounds      how often it was done
  wrong       records that differ from the undisturbed run's, are missing or
              stand twice
  restarted   runs that began at step 0 again although they had a checkpoint
  hung        processes that had to be killed after the time limit
  no words    ends other than the expected one: another exit status, or no
              sentence, or a traceback
  silent      damaged checkpoints whose values were used

`--flips=N` flips N single bits of a checkpoint besides, and restores it after
each: in one process, which a round is not. The exit status is 1 if any of these
counts is not 0; the folders of such runs are kept. Ctrl-C ends it with the
table of the rounds so far. The processes of rounds are
forks of one that has imported what they import, and share compiled programs, so
that a round takes some seconds of CPU time.
"""

import argparse
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import forked

from t5x_variants.run_dir import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, CHECKPOINT_PERIOD = 24, 4
LIMIT = 180  # seconds for one process
FILES = ('models/tiny', 'variants/rational', 'data/prepared', 'runs/pretrain')
SMALL = {
  'TRAIN_STEPS': STEPS,
  'CHECKPOINT_PERIOD': CHECKPOINT_PERIOD,
  'EVAL_PERIOD': 7,
  'EVAL_STEPS': 1,
  'LOG_PERIOD': 1,
  'BATCH_SIZE': 2,
  'NUM_MICROBATCHES': 1,
  'MLP_DIM': 24,
  'network.T5Config.emb_dim': 8,
  'network.T5Config.num_heads': 1,
  'network.T5Config.head_dim': 8,
  'network.T5Config.num_encoder_layers': 1,
  'network.T5Config.num_decoder_layers': 1,
}
# What may not change, or cannot be, and a word of the sentence that says so.
WRONG = (
  ({'ACTIVATION': "'gelu'"}, 'holds another run'),
  ({'GATED': True, 'MLP_DIM': 36}, 'another'),
  ({'RANDOM_SEED': 1}, 'RANDOM_SEED'),
  ({'BATCH_SIZE': 4}, 'BATCH_SIZE'),
  ({'COEFFICIENT_OPTIMIZER': None}, 'COEFFICIENT_OPTIMIZER'),
  ({'FROZEN': "'token_embedder'"}, 'no gin file'),
  ({'optimizer.adafactor.frozen': "'token_embedder'"}, 'another optimizer'),
  ({'TRAIN_STEPS': -1}, 'TRAIN_STEPS'),
  ({'FFN_IMPLEMENTATION': "'pallas'"}, 'FFN_IMPLEMENTATION'),
  ({'VOCAB_SIZE': 128}, 'VOCAB_SIZE'),
)
_HOSTS = 'one of two hosts killed'
COUNTS = ('rounds', 'wrong', 'restarted', 'hung', 'no words', 'silent')


class Failure(Exception):
  """A process ended in another way than it should."""


@dataclasses.dataclass
class Run:
  """A run directory, and what is known of it."""

  folder: pathlib.Path
  draw: random.Random
  log_begin: int = 0

  @property
  def log(self) -> pathlib.Path:
    """What all processes of the run have printed."""
    return self.folder.with_suffix('.log')

  @property
  def checkpoints(self) -> list[pathlib.Path]:
    """The folders of whole steps, oldest first."""
    folder = self.folder / 'checkpoints'
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(
      (p for p in found if p.name.isdigit()), key=lambda p: int(p.name)
    )

  def start(self, settings=(), flags=(), output=None, **options):
    """Starts the command with some settings changed."""
    self.log.touch()
    self.log_begin = self.log.stat().st_size
    bindings = SMALL | dict(settings)
    return forked.start(
      [
        't5x_variants.train',
        *(f'--gin_file=gin/{name}.gin' for name in FILES),
        *(f'--gin.{name}={value}' for name, value in bindings.items()),
        f'--gin.MODEL_DIR={str(self.folder)!r}',
        *flags,
      ],
      output=output or self.log,
      folder=ROOT,
      **options,
    )

  def words(self) -> str:
    """What the last process has printed."""
    if not self.log.exists():
      return ''
    return self.log.read_bytes()[self.log_begin :].decode(errors='replace')

  def records(self) -> list[tuple]:
    """The numbers of all records that must be the same in every run."""
    if not (self.folder / 'metrics.jsonl').exists():
      return []
    names = ('loss', 'z_loss', 'accuracy', 'gradient_norm', 'learning_rate')
    return sorted(
      (r['split'], r['step'], *(r[n] for n in names if n in r))
      for r in records.read(self.folder)
    )


def wait(process, limit: float = LIMIT) -> int:
  """The exit status of a process; a Failure if it hangs."""
  process.join(limit)
  if process.exitcode is None:
    process.kill()
    process.join()
    raise Failure('hung')
  return process.exitcode


def expect(run: Run, status: int, allowed, words: str = '') -> None:
  """A Failure unless a process ended with an allowed status, in good words."""
  said = run.words()
  if status not in allowed or 'Traceback' in said or words not in said:
    raise Failure('no words')


def wait_until(condition: Callable[[], bool], process) -> bool:
  """Whether a condition came true before the process ended."""
  begun = time.monotonic()
  while process.exitcode is None and time.monotonic() - begun < LIMIT:
    if condition():
      return True
    time.sleep(0.005)
  return False


# --- kinds of rounds: each disturbs a run that has a checkpoint or none ---


def kill(run: Run) -> None:
  """SIGKILL at any moment."""
  process = run.start()
  if run.draw.random() < 0.5:
    size = len(run.words()) + run.draw.randrange(2500)
    wait_until(lambda: len(run.words()) > size, process)
  process.join(run.draw.random() * 3)
  process.kill()
  process.join()


def kill_inside_a_checkpoint(run: Run) -> None:
  """SIGKILL while a step has its temporary name."""
  process = run.start()
  folder = run.folder / 'checkpoints'
  wait_until(lambda: any(folder.glob('*orbax-checkpoint-tmp*')), process)
  time.sleep(run.draw.random() * 0.1)
  process.kill()
  process.join()


def send_signal(run: Run) -> None:
  """SIGTERM or Ctrl-C, which save; before the first step they end it."""
  process = run.start()
  number = run.draw.choice([signal.SIGTERM, signal.SIGINT])
  # The first word means that it has begun to be the command.
  word = '\nstep ' if run.draw.random() < 0.7 else '\n'
  wait_until(lambda: word in run.words(), process)
  time.sleep(run.draw.random() * 0.2)
  if process.exitcode is None:
    os.kill(process.pid, number)
  expect(run, wait(process), (0, 130, -signal.SIGTERM, 128 + signal.SIGTERM))


def fill_the_disk(run: Run) -> None:
  """No file can grow beyond some size."""
  limit = int(10 ** run.draw.uniform(1, 5))
  # What is printed goes through a pipe: the limit would hold for a file.
  pipe = run.folder.with_suffix('.pipe')
  os.mkfifo(pipe)
  opened = os.open(pipe, os.O_RDWR)

  def copy() -> None:
    with run.log.open('ab', buffering=0) as log:
      while (text := os.read(opened, 1 << 16)) != b'\0':
        log.write(text.removesuffix(b'\0'))
        if text.endswith(b'\0'):
          return

  thread = threading.Thread(target=copy)
  thread.start()
  try:
    status = wait(run.start(file_size=limit, output=pipe))
  finally:
    os.write(opened, b'\0')
    thread.join()
    os.close(opened)
    pipe.unlink()
  expect(run, status, (0, 2))


def damage_a_file(run: Run) -> None:
  """Cuts, empties or removes a file of the newest checkpoint."""
  if not run.checkpoints:
    return
  path = _some_file(run)
  how = run.draw.choice(['cut', 'empty', 'remove'])
  if how == 'remove':
    path.unlink()
  else:
    os.truncate(path, path.stat().st_size // 2 if how == 'cut' else 0)


def flip_a_bit(run: Run) -> None:
  """Flips one bit anywhere in the newest checkpoint."""
  if not run.checkpoints:
    return
  path = _some_file(run)
  content = bytearray(path.read_bytes())
  content[run.draw.randrange(len(content))] ^= 1 << run.draw.randrange(8)
  path.write_bytes(content)


def _some_file(run: Run) -> pathlib.Path:
  step = run.checkpoints[-1]
  return run.draw.choice(
    sorted(p for p in step.rglob('*') if p.is_file() and p.stat().st_size)
  )


def damage_the_records(run: Run) -> None:
  """Adds to metrics.jsonl what is no record."""
  path = run.folder / 'metrics.jsonl'
  if path.exists():
    junk = (b'\xff\xfe\n', b'[1]\n', b'{"step": 3', b'{"step": "x"}\n', b'\n')
    with path.open('ab') as file:
      file.write(run.draw.choice(junk))


def start_otherwise(run: Run) -> None:
  """Settings of another run, or that cannot be; nothing may change."""
  if not run.checkpoints:
    return
  settings, words = run.draw.choice(WRONG)
  before = _content(run.folder)
  expect(run, wait(run.start(settings)), (2,), words)
  if _content(run.folder) != before:
    raise Failure('wrong')


def _content(folder: pathlib.Path) -> dict:
  return {
    path: path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != 'lock'
  }


def start_twice(run: Run) -> None:
  """A second process in the same folder names the first and ends."""
  first = run.start()
  began = run.log_begin
  if wait_until(lambda: 'Compiled the training step' in run.words(), first):
    other = dataclasses.replace(run, folder=run.folder)
    second = other.start()
    status = wait(second)
    if f'process {first.pid} on' in other.words():
      expect(other, status, (2,), 'is in use')
    elif 'Nothing to do' not in other.words() and first.exitcode is None:
      raise Failure('no words')
  run.log_begin = began
  expect(run, wait(first), (0,))


def kill_one_of_two_hosts(run: Run) -> None:
  """Two processes train; one is killed, and the other ends soon."""
  hosts = start_hosts(run)
  wait_until(lambda: '\nstep ' in run.words(), hosts[0])
  time.sleep(run.draw.random() * 0.3)
  victim, other = run.draw.sample(hosts, 2)
  victim.kill()
  victim.join()
  # It may have come to its end before.
  if wait(other, 60) and 'error: ' not in run.words():
    raise Failure('no words')
  expect_all(run, start_hosts(run))


def start_hosts(run: Run) -> list:
  """Starts the command as two processes."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [
    run.start(
      flags=(
        f'--coordinator_address=localhost:{port}',
        '--process_count=2',
        f'--process_index={index}',
        '--heartbeat_timeout=10',
      )
    )
    for index in range(2)
  ]


def expect_all(run: Run, hosts: list) -> None:
  """A Failure unless all processes come to their end."""
  for status in map(wait, hosts):
    expect(run, status, (0,))


KINDS: dict[str, tuple[Callable[[Run], None], float]] = {
  'SIGKILL': (kill, 6),
  'SIGKILL inside a checkpoint': (kill_inside_a_checkpoint, 5),
  'SIGTERM or Ctrl-C': (send_signal, 3),
  'full disk': (fill_the_disk, 3),
  'damaged checkpoint file': (damage_a_file, 2),
  'flipped bit': (flip_a_bit, 2),
  'damaged records': (damage_the_records, 1),
  'wrong settings': (start_otherwise, 3),
  'two at once': (start_twice, 1),
  _HOSTS: (kill_one_of_two_hosts, 0.5),
}

# Kinds that disturb checkpoints, of which there must be two.
NEED_CHECKPOINT = ('damaged checkpoint file', 'flipped bit')


# --- the campaign ---


class Campaign:
  """Rounds in runs of its own, one after another, and their counts."""

  def __init__(
    self, folder: pathlib.Path, expected: dict[bool, list], seed: int
  ):
    """Prepares for the first round.

    Args:
      folder: where the runs are written.
      expected: records of an undisturbed run, by whether two hosts trained.
      seed: of all that is drawn.
    """
    self._folder, self._expected = folder, expected
    self._draw = random.Random(seed)
    self._number = 0
    self.counts = {kind: dict.fromkeys(COUNTS, 0) for kind in KINDS}
    self.kept: list[str] = []
    self._run = self._new_run()

  def _new_run(self) -> Run:
    self._number += 1
    return Run(self._folder / f'run-{self._number}', self._draw)

  def round(self, kind: str) -> None:
    """Disturbs a run, lets it go on, and counts what that cost."""
    run = self._new_run() if kind == _HOSTS else self._run
    self.counts[kind]['rounds'] += 1
    try:
      ended = self._disturb(kind, run)
      failure = self._compare(kind, run, ended)
    except Failure as error:
      failure = str(error)
    if failure:
      self.counts[kind][failure] += 1
      self.kept.append(f'{run.folder}: {failure} after {kind}')
    elif self._is_complete(kind, run):
      shutil.rmtree(run.folder)
      run.log.unlink()
    else:
      return  # The next round goes on with it.
    if run is self._run:
      self._run = self._new_run()

  def _disturb(self, kind: str, run: Run) -> bool:
    """Does it; whether the run has come to its end after that."""
    if kind in NEED_CHECKPOINT and len(run.checkpoints) < 2:
      self._go_on(run, part=True)
    KINDS[kind][0](run)
    # Damage is judged by what the run makes of it; others may be disturbed
    # once more before they come to their end.
    ends = kind in NEED_CHECKPOINT or self._draw.random() < 0.4
    if ends:
      self._go_on(run)
    return ends or kind == _HOSTS

  def _go_on(self, run: Run, part: bool = False) -> None:
    """To the end, or until there are two checkpoints."""
    process = run.start()
    if part and wait_until(lambda: len(run.checkpoints) >= 2, process):
      process.kill()
      process.join()
      return
    expect(run, wait(process), (0,))

  def _compare(self, kind: str, run: Run, ended: bool) -> str:
    """Names the count that the records of a run fall under; '' for none."""
    said = run.words()
    if 'starts again at step 0' in said and (run.folder / 'had').exists():
      return 'restarted'
    if run.checkpoints:
      (run.folder / 'had').touch()
    found, expected = run.records(), self._expected[kind == _HOSTS]
    same = (
      found == expected
      if ended
      else len(found) == len(set(found)) and set(found) <= set(expected)
    )
    if same:
      return ''
    return 'silent' if kind in NEED_CHECKPOINT else 'wrong'

  def _is_complete(self, kind: str, run: Run) -> bool:
    return run.records() == self._expected[kind == _HOSTS]

  def table(self) -> str:
    """The counts, a line for each kind."""
    total = {c: sum(row[c] for row in self.counts.values()) for c in COUNTS}
    rows = {k: v for k, v in self.counts.items() if v['rounds']}
    return '\n'.join(
      '  '.join(
        [name.ljust(max(map(len, KINDS)))]
        + [str(row[c]).rjust(max(6, len(c))) for c in COUNTS]
      )
      for name, row in [
        ('', dict(zip(COUNTS, COUNTS, strict=True))),
        *rows.items(),
        ('all', total),
      ]
    )


def undisturbed(folder: pathlib.Path, hosts: bool) -> list:
  """The records of a run that nothing disturbs."""
  run = Run(folder / f'undisturbed-{hosts}', random.Random(0))
  expect_all(run, start_hosts(run) if hosts else [run.start()])
  return run.records()


def campaign(
  folder: pathlib.Path,
  kinds: list[str],
  expected: dict,
  seed: int,
  stopped: threading.Event,
) -> Campaign:
  """Does rounds of these kinds, until it is stopped."""
  done = Campaign(folder, expected, seed)
  begun = time.monotonic()
  for number, kind in enumerate(kinds, 1):
    if stopped.is_set():
      break
    done.round(kind)
    if number % 20 == 0 or number == len(kinds):
      seconds = time.monotonic() - begun
      print(
        f'{folder.name}: {number}/{len(kinds)} rounds, {seconds:.0f} s, '
        f'{len(done.kept)} failed',
        file=sys.stderr,
        flush=True,
      )
  return done


def flips(whole: pathlib.Path, count: int, seed: int) -> str:
  """Flips single bits of the newest step in a folder of checkpoints.

  Orbax writes one file after the checksums, the times of writing.

  Returns:
    A line; '' without flips.

  Raises:
    Failure: a step with a flipped bit gave values that are neither its own nor
      those of the step before it.
  """
  if not count:
    return ''
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from t5x_variants.training import checkpoints

  logging.getLogger('t5x_variants').setLevel(logging.ERROR)
  draw = random.Random(seed)
  steps = sorted(int(p.name) for p in whole.iterdir() if p.name.isdigit())
  files = sorted(p for p in (whole / f'{steps[-1]}').rglob('*') if p.is_file())
  files = [path for path in files if path.stat().st_size]
  # A bit of any file is as likely as its share of the bytes.
  sizes = [path.stat().st_size for path in files]

  class Position:
    """Checksums are looked at before it would be read."""

    def restore(self, directory):
      del directory

  def restored():
    with checkpoints.Checkpoints(
      whole, checkpoints.CheckpointConfig(max_to_keep=None)
    ) as saved:
      return jax.device_get(saved.restore_latest(abstract, Position()))

  def same(one, other) -> bool:
    return all(
      jax.tree.leaves(
        jax.tree.map(lambda x, y: np.array_equal(x, y), one, other)
      )
    )

  with ocp.StandardCheckpointer() as reader:
    metadata = reader.metadata(whole / f'{steps[-1]}' / 'state')
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    metadata.item_metadata.tree,
  )
  newest = restored()
  aside = whole / f'{steps[-1]}.aside'
  (whole / f'{steps[-1]}').rename(aside)
  before = restored()
  aside.rename(whole / f'{steps[-1]}')
  if same(newest, before):
    raise Failure('two steps are the same, so that nothing can be told')
  unused = 0
  for number in range(count):
    (path,) = draw.choices(files, sizes)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    original = path.read_bytes()
    path.write_bytes(content)
    found = restored()
    aside = whole / f'unreadable-{steps[-1]}'
    if aside.exists():
      aside.rename(whole / f'{steps[-1]}')
    elif same(found, newest):
      unused += 1
    if not same(found, before) and not same(found, newest):
      raise Failure(f'flip {number} gave other values, in {path}')
    path.write_bytes(original)
  if not same(restored(), newest):
    raise Failure('the checkpoint is not what it was before the flips')
  seen = count - unused
  return (
    f'{count} flipped bits: 0 gave other values. After {seen} of them the step '
    f'before was used; {unused} are in a file that no value is read from.'
  )


def draw_kinds(rounds: int, seed: int) -> list[str]:
  """The kinds of all rounds, in a random order, each about by its weight."""
  draw = random.Random(seed)
  weights = [weight for _, weight in KINDS.values()]
  return draw.choices(list(KINDS), weights, k=rounds)


def main(arguments: list[str] | None = None) -> int:
  """Runs the campaign; the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=200)
  parser.add_argument('--flips', type=int, default=0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--folder', type=pathlib.Path)
  chosen = parser.parse_args(arguments)
  folder = chosen.folder or pathlib.Path(tempfile.mkdtemp(prefix='torture-'))
  folder.mkdir(parents=True, exist_ok=True)
  # Before the first process: they all have the environment of now.
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
    # One thread: many of these processes share few cores.
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
  }
  kinds = draw_kinds(chosen.rounds, chosen.seed)
  expected = {False: undisturbed(folder, hosts=False)}
  if _HOSTS in kinds:
    expected[True] = undisturbed(folder, hosts=True)
  # After the first run: the fork server must not have computed anything.
  print(flips(folder / 'undisturbed-False/checkpoints', chosen.flips, 0))
  begun = time.monotonic()
  # Ctrl-C ends it after the rounds that are under way, with the table.
  stopped = threading.Event()
  signal.signal(signal.SIGINT, lambda *_: stopped.set())
  with concurrent.futures.ThreadPoolExecutor(chosen.processes) as pool:
    parts = [
      pool.submit(
        campaign,
        _made(folder / f'part-{part}'),
        kinds[part :: chosen.processes],
        expected,
        chosen.seed * 1000 + part,
        stopped,
      )
      for part in range(chosen.processes)
    ]
    done = [part.result() for part in parts]
  for other in done[1:]:
    for kind, row in other.counts.items():
      for name, value in row.items():
        done[0].counts[kind][name] += value
    done[0].kept += other.kept
  print(done[0].table())
  print(
    f'{sum(row["rounds"] for row in done[0].counts.values())} of {len(kinds)} '
    f'rounds in {time.monotonic() - begun:.0f} s on '
    f'{chosen.processes} process(es); seed {chosen.seed}.'
  )
  for line in done[0].kept:
    print(f'kept {line}')
  if not done[0].kept:
    shutil.rmtree(folder)
  return 1 if done[0].kept else 0


def _made(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  return folder


if __name__ == '__main__':
  sys.exit(main())
