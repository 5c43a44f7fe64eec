r"""Runs a sweep: variants x tasks x seeds of one gin file.

  python -m t5x_variants.sweep --gin_file=gin/sweeps/low_data.gin \
    [--processes=2] [--gin.SWEEP_DIR="'runs/low_data'"] [--dry_run]

Each run is a process of its own, `python -m t5x_variants.train ...`, whose
output goes to log.txt in its run directory, beside command.txt, the command.
`--dry_run` prints the commands. Stopped in whatever way and started again, the
sweep goes on: a run whose records say that it is finished is left alone, one
that was under way goes on from its newest checkpoint. Ctrl-C and SIGTERM are
passed on, and the runs save before they end.

A run that fails does not end the sweep: what went wrong is listed at the end,
and the exit status is 1. With `--processes=N` N runs share the CPU's cores; on
an accelerator leave it at 1. Compiled programs are kept in the sweep's folder
for the runs that follow (JAX_COMPILATION_CACHE_DIR, where it is not set
already).

Exit status: 0 all is finished, 1 something failed, 2 the sweep cannot be run
as it was given, 130 or 143 it was told to stop.
"""

import resource
import signal
import time

from absl import flags

from t5x_variants.cli import gin_utils

gin_utils.define_flags()
flags.DEFINE_integer('processes', 1, 'Runs at a time.', lower_bound=1)
FLAGS = flags.FLAGS


def main() -> None:
  """Reads the sweep and runs it, or with --dry_run prints its commands."""
  from t5x_variants import logs
  from t5x_variants.analysis import scheduler, sweeps

  logs.quiet()
  gin_utils.parse(FLAGS.gin_file, FLAGS.gin_bindings, FLAGS.gin_search_paths)
  sweep = gin_utils.configured(sweeps.Sweep)()
  planned = sweeps.plan(sweep, gin_utils.gin_folder())
  if FLAGS.dry_run:
    print(''.join(map(scheduler.command, planned)), end='')
    return
  scheduler.check(planned, sweep.folder)
  begun = time.monotonic()
  runs = scheduler.Scheduler(planned, FLAGS.processes, sweep.folder)
  stopped_by = runs.run()
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  logs.say(
    f'{time.monotonic() - begun:.0f} s, {used.ru_utime + used.ru_stime:.0f} '
    'CPU seconds.'
  )
  for name, why in runs.failed.items():
    logs.say(f'FAILED {name}: {why}')
  if stopped_by:
    logs.say(f'{stopped_by}: stopped. The same command goes on from there.')
    raise SystemExit(128 + getattr(signal, stopped_by))
  if runs.failed:
    raise SystemExit(1)


if __name__ == '__main__':
  gin_utils.run(main)
