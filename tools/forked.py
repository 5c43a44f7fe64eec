"""Commands as processes without the start of an interpreter.

Importing JAX and what training needs costs some CPU seconds for each process.
Here it is paid once: the standard library's fork server imports the modules,
computes nothing, and forks for each command. A command is otherwise as a shell
runs it: a process of its own with its own flags, output and exit status. The
environment is that of the first command: libraries read it when they are
imported.
"""

import atexit
import functools
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence

# What training imports; no command, since importing one defines its flags.
TRAINING = (
  't5x_variants.training.trainer',
  't5x_variants.cli.gin_utils',
  't5x_variants.data.text.embedded',
  't5x_variants.data.prepared.reader',
  'array_record.python.array_record_module',
  'tensorboardX.summary',
  'optax',
)


@functools.cache
def _context(modules: tuple[str, ...]):
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(list(modules))
  # JAX warns of each fork, and the server has started nothing of JAX's.
  before = os.environ.get('PYTHONWARNINGS')
  os.environ['PYTHONWARNINGS'] = 'ignore:os.fork'
  try:
    # Takes over the environment as it is now, and the modules.
    context.Process(target=_nothing).start()
  finally:
    del os.environ['PYTHONWARNINGS']
    if before is not None:
      os.environ['PYTHONWARNINGS'] = before
  return context


def _nothing() -> None:
  pass


def start(
  arguments: Sequence[str],
  *,
  output: str | os.PathLike,
  errors: str | os.PathLike | None = None,
  stdin: str | os.PathLike = os.devnull,
  folder: str | os.PathLike = '.',
  environment: Mapping[str, str] | None = None,
  file_size: int | None = None,
  modules: tuple[str, ...] = TRAINING,
) -> multiprocessing.Process:
  """Starts a command.

  Args:
    arguments: the command, 't5x_variants.train' or the path of a script, and
      its arguments.
    output: the file to which standard output is appended.
    errors: the same for standard error; None: to `output` too.
    stdin: the file to read standard input from.
    folder: the working folder.
    environment: variables that are set besides those of the first command;
      imports are done by then.
    file_size: bytes that its files may have, as a disk that is full would
      have it; None: any number.
    modules: what the server imports; it is started with the first command.

  Returns:
    The process, with its `pid`, `exitcode`, `kill` and `join`.
  """
  process = _context(modules).Process(
    target=_run,
    args=(
      list(arguments),
      [os.path.abspath(path) for path in (stdin, output, errors or output)],
      os.path.abspath(folder),
      dict(environment or {}),
      file_size,
    ),
  )
  process.start()
  return process


def _run(arguments, streams, folder, environment, file_size) -> None:
  """Becomes the command, and ends with its exit status."""
  # A terminal's Ctrl-C is for the one who started this process.
  os.setsid()
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.chdir(folder)
  os.environ.update(environment)
  append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
  modes = os.O_RDONLY, append, append
  for number, (path, mode) in enumerate(zip(streams, modes, strict=True)):
    os.dup2(os.open(path, mode, 0o666), number)
  # multiprocessing has closed the one that was there.
  sys.stdin = open(0, encoding='utf-8')  # noqa: SIM115 - it stays open.
  if file_size is not None:
    limit_files(file_size)
  os._exit(_status(arguments))


def limit_files(size: int) -> None:
  """Lets no file of this process grow beyond `size` bytes from now on."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def _status(arguments: Sequence[str]) -> int:
  sys.argv = list(arguments)
  warnings.resetwarnings()
  try:
    if arguments[0].endswith('.py'):
      sys.path.insert(0, os.path.dirname(arguments[0]))
      runpy.run_path(arguments[0], run_name='__main__')
    else:
      sys.path.insert(0, '')  # As `python -m` has it.
      runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    status = 0
  except SystemExit as end:
    status = end.code
    if not isinstance(status, int | None):
      print(status, file=sys.stderr)
      status = 1
  except KeyboardInterrupt:
    status = 128 + signal.SIGINT
  except BaseException:
    traceback.print_exc()
    status = 1
  atexit._run_exitfuncs()
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  return status or 0
