"""Starts t5x's commands, each forked from a process that has imported t5x.

An import of t5x takes longer than training a tiny model. Nothing but the
imports is shared: devices, gin and flags are each command's own.
"""

import multiprocessing
import os
import runpy
import sys
import time

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['t5x.train', 't5x.eval', 't5x.infer'])


def run(module, arguments, *, folder, devices, timeout):
  """Runs `python -m MODULE ARGUMENTS` in a folder.

  Returns:
    The exit status, None after the timeout, and what was written to stdout and
    stderr.
  """
  log = folder / f'{module}.log'
  process = _CONTEXT.Process(
    target=_command, args=(module, arguments, str(folder), devices, str(log))
  )
  process.start()
  process.join(timeout)
  if process.exitcode is None:
    process.kill()
    process.join()
    return None, log.read_text()
  return process.exitcode, log.read_text()


def _command(module, arguments, folder, devices, log):
  os.chdir(folder)
  sys.path.insert(0, '')  # as `python -m` has it
  with open(log, 'w') as file:
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
  # Read when the first device is asked for, which no import does. Quick to
  # compile, which is most of what a short run costs.
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0'
  )
  sys.argv = [module, *arguments]
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  finally:
    print(f'{time.process_time():.0f} CPU seconds', file=sys.stderr)
