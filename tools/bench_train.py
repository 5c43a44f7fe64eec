"""What a run costs: CPU seconds per step and at all, time, memory.

  python tools/bench_train.py [--repeats 3] [--variant geglu] [--data prepared]

The work: the tiny model (886,528 parameters) on the embedded corpus, batch 16,
256 input and 64 target tokens, packed, byte vocabulary, span corruption
0.15/3, Adafactor, float32. A short and a long run are timed as whole
processes, from outside: the difference is the cost of a step, the rest of the
short one what every run pays (imports, data, initialisation, compilation, one
checkpoint). Evaluation is off. CPU seconds count all threads; wall time
depends on what else the machine does. With `--data prepared` the corpus is
prepared before anything is timed.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psutil

from t5x_variants.data.prepared import embedded
from t5x_variants.run_dir import records

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(variant: str, data: str, model_dir: str, steps: int) -> list[str]:
  """The training command of one run."""
  files = (
    'models/tiny',
    f'variants/{variant}',
    f'data/{data}',
    'runs/pretrain',
  )
  return [
    sys.executable,
    '-m',
    't5x_variants.train',
    *(f'--gin_file=gin/{file}.gin' for file in files),
    f"--gin.MODEL_DIR='{model_dir}'",
    f'--gin.TRAIN_STEPS={steps}',
    '--gin.LOG_PERIOD=10',
    '--gin.evaluator.EvaluationConfig.dataset=None',
  ]


def run(variant: str, data: str, steps: int) -> dict[str, float]:
  """Runs once; returns CPU seconds, memory and what the run recorded."""
  with tempfile.TemporaryDirectory() as model_dir:
    begun = time.perf_counter()
    process = subprocess.Popen(
      command(variant, data, model_dir, steps),
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    peak = _Peak(process.pid)
    first_step, lines = float('nan'), []
    for line in process.stderr:
      lines.append(line)
      if line.startswith('Compiled'):
        first_step = time.perf_counter() - begun
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    peak.join()
    if status:
      raise SystemExit(f'The run failed:\n{"".join(lines[-20:])}')
    steps = records.read(model_dir, 'train')
    return {
      # Of all records but the first, in which threads are started.
      'wait': statistics.mean(r['data_wait'] for r in steps[1:] or steps),
      'cpu': usage.ru_utime + usage.ru_stime,
      'first_step': first_step,
      # The kernel's own high-water mark where there is one process; the
      # sampled sum where there are more.
      'peak': max(peak.mebibytes, usage.ru_maxrss / 1024),
    }


class _Peak(threading.Thread):
  """Samples the resident memory of a process and its children together."""

  def __init__(self, pid: int):
    super().__init__(daemon=True)
    self._pid = pid
    self.mebibytes = 0.0
    self.start()

  def run(self) -> None:
    try:
      process = psutil.Process(self._pid)
      while process.status() != psutil.STATUS_ZOMBIE:
        family = [process, *process.children(recursive=True)]
        total = sum(p.memory_info().rss for p in family) / 2**20
        self.mebibytes = max(self.mebibytes, total)
        time.sleep(0.05)
    except psutil.Error:
      return


def main() -> None:
  """Times the runs and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--variant', default='geglu')
  parser.add_argument(
    '--data', default='embedded', choices=('embedded', 'prepared')
  )
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--short', type=int, default=10, help='steps')
  parser.add_argument('--long', type=int, default=110, help='steps')
  arguments = parser.parse_args()
  if arguments.data == 'prepared':
    embedded.prepared()
  rows = []
  for repeat in range(arguments.repeats):
    short = run(arguments.variant, arguments.data, arguments.short)
    long = run(arguments.variant, arguments.data, arguments.long)
    step = (long['cpu'] - short['cpu']) / (arguments.long - arguments.short)
    rows.append(
      {
        'CPU-s per step': step,
        'fixed CPU-s of a run': short['cpu'] - arguments.short * step,
        'seconds to the first step': short['first_step'],
        'peak MiB, all processes': max(short['peak'], long['peak']),
        'percent waiting for data': 100 * long['wait'],
      }
    )
    print(f'pair {repeat + 1} of {arguments.repeats} done', file=sys.stderr)
  print(
    f'{arguments.variant}, {arguments.data}, {os.cpu_count()} cores, medians'
    ' (min to max)'
  )
  for name in rows[0]:
    values = [row[name] for row in rows]
    print(
      f'{name:28s} {statistics.median(values):9.3f}'
      f'  ({min(values):.3f} to {max(values):.3f})'
    )


if __name__ == '__main__':
  main()
