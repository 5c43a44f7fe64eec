"""Runs commands as processes of their own, without an interpreter's start.

Importing JAX and TensorFlow costs seconds. Here it is done once: each command
is a fork of a process that has imported what the commands import, and has
computed nothing. A command is otherwise as a shell runs it: `__main__`, its
own flags, its own exit status.

Reads one JSON object a line: `argv` (a module of the package, or a script of
tools/, and its arguments), `folder` to run in, and the files `stdin`, `stdout`
and `stderr`. Answers each with two lines: the process's number at once; its
exit status, and the CPU seconds of all so far, when it has ended.
"""

import atexit
import gc
import importlib
import json
import os
import pathlib
import pkgutil
import resource
import runpy
import signal
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
TIMEOUT = 280  # seconds


def import_all() -> None:
  """Imports every module of the package that is no command."""
  import t5x_variants

  sys.path[:0] = [str(TOOLS), str(TOOLS / 'kernels')]
  names = ['matplotlib.figure']
  for module in pkgutil.walk_packages(t5x_variants.__path__, 't5x_variants.'):
    spec = module.module_finder.find_spec(module.name)
    source = pathlib.Path(spec.origin).read_text(encoding='utf-8')
    if "__name__ == '__main__'" not in source and 'torch' not in source:
      names.append(module.name)
  for name in names:
    importlib.import_module(name)


def become(argv, folder, **streams) -> int:
  """Turns this process into a command; its exit status."""
  signal.alarm(TIMEOUT)
  os.chdir(folder)
  for number, (name, mode) in enumerate(
    (('stdin', os.O_RDONLY), ('stdout', os.O_WRONLY), ('stderr', os.O_WRONLY))
  ):
    opened = os.open(streams[name], mode | (mode and os.O_CREAT | os.O_TRUNC))
    os.dup2(opened, number)
    os.close(opened)
  # The buffer of the server's own input came along.
  sys.stdin = open(0, encoding='utf-8')  # noqa: SIM115 - it stays open.
  sys.argv = argv
  try:
    if argv[0].endswith('.py'):
      sys.argv[0] = str(TOOLS / argv[0])
      runpy.run_path(sys.argv[0], run_name='__main__')
    else:
      name = f't5x_variants.{argv[0]}'
      runpy.run_module(name, run_name='__main__', alter_sys=True)
  except SystemExit as end:
    if isinstance(end.code, int | None):
      return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def main() -> None:
  """Serves until its input ends."""
  import_all()
  # What lives now lives in every child: looking through it would copy it.
  gc.collect()
  gc.freeze()
  print('ready', flush=True)
  for line in sys.stdin:
    child = os.fork()
    if not child:
      status = become(**json.loads(line))
      atexit._run_exitfuncs()
      sys.stdout.flush()
      # Without tearing down what was imported, which takes seconds.
      os._exit(status)
    print(child, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(status, used.ru_utime + used.ru_stime, flush=True)


if __name__ == '__main__':
  main()
