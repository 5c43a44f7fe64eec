"""Commands as processes without the start of an interpreter.

Importing JAX and what training needs costs some CPU seconds for each process.
Here it is paid once: the standard library's fork server imports the modules,
computes nothing, and forks for each command. A command is otherwise as a shell
runs it: a process of its own with its own flags, output and exit status. Its
environment is that of the first command's start: libraries read it when they
are imported.
"""

import atexit
import functools
import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

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
  folder: str | os.PathLike = '.',
  file_size: int | None = None,
  modules: tuple[str, ...] = TRAINING,
) -> multiprocessing.Process:
  """Starts a command of the package.

  Args:
    arguments: the command, 't5x_variants.train', and its arguments.
    output: the file to which standard output and error are appended.
    folder: the working folder.
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
      os.fspath(pathlib.Path(output).absolute()),
      os.path.abspath(folder),
      file_size,
    ),
  )
  process.start()
  return process


def _run(arguments, output, folder, file_size) -> None:
  """Becomes the command, and ends with its exit status."""
  # A terminal's Ctrl-C is for the one who started this process.
  os.setsid()
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.chdir(folder)
  opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
  for number in (1, 2):
    os.dup2(opened, number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
