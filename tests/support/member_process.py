"""Runs of several processes that do not train, to see how each of them ends.

python tests/support/member_process.py RUNS, a list of dicts in JSON:
  flags    for each process a list of flags of `t5x_variants.distributed.hosts`
  while    what all do once they have met: sleep or compute; gather: nothing,
           because not all come, and five seconds later all do `then`
  rank     which of them does `then` a second after they have met
  then     a key of THEN

Prints in JSON, for each run, for each process its exit status (None: it did not
end), the seconds from what `rank` did to its end (0 if it did nothing), and its
output. Imports, which take most of the time, are done once: all are forks.
"""

import json
import os
import signal
import sys
import threading
import time

import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from t5x_variants import errors, logs
from t5x_variants.cli import host_flags
from t5x_variants.distributed import hosts

# Seconds that a start may take on a busy machine, and the end of all others.
LIMIT = 200


def main():
  host_flags.define_flags()
  pipes = [forked(watch, run)[1] for run in json.loads(sys.argv[1])]
  json.dump([json.loads(read(pipe)) for pipe in pipes], sys.stdout)


def forked(function, *arguments):
  """Calls it in another process; its number and where its output is read."""
  reads, writes = os.pipe()
  pid = os.fork()
  if not pid:
    for output in (1, 2):  # gloo writes to stdout.
      os.dup2(writes, output)
    os.close(writes)
    status = function(*arguments)
    sys.stdout.flush()
    os._exit(status)
  os.close(writes)
  return pid, reads


def read(pipe):
  with os.fdopen(pipe) as file:
    return file.read()


def watch(run):
  """Starts a run and prints how its processes have ended."""
  acted, acts = os.pipe()
  started = [
    forked(process, run, rank, acts) for rank in range(len(run['flags']))
  ]
  os.close(acts)
  ends = wait([pid for pid, _ in started], run.get('then') == 'hang')
  # Up to its end: the last line is printed when the process is gone.
  texts = [read(pipe) for _, pipe in started]
  begun = read(acted)
  found = []
  for (pid, _), text in zip(started, texts, strict=True):
    status, at = ends.get(pid, (None, None))
    seconds = round(at - float(begun), 1) if at and begun else 0
    found.append((status, seconds, text))
  print(json.dumps(found))
  return 0


def wait(pids, one_hangs):
  """When each has ended and how, by its number; those that go on are killed."""
  ends = {}
  until = time.monotonic() + LIMIT
  while len(ends) < len(pids) - one_hangs and time.monotonic() < until:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
      ends[pid] = os.waitstatus_to_exitcode(status), time.monotonic()
    else:
      time.sleep(0.05)
  for pid in set(pids) - set(ends):
    os.kill(pid, signal.SIGKILL)
  return ends


def process(run, rank, acts):
  """What an entry point does; returns its exit status."""
  logs.quiet()
  flags.FLAGS(['process', *run['flags'][rank]])
  if run['while'] == 'gather':
    threading.Timer(5, THEN[run['then']]).start()
  try:
    with hosts.joined(flags.FLAGS):
      act(run, rank, acts)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 2
  return 0


def act(run, rank, acts):
  """All sleep or compute, until `rank` does its thing."""
  until = time.monotonic() + 1
  while rank != run['rank'] or time.monotonic() < until:
    if run['while'] == 'compute':
      step()
    else:
      time.sleep(0.1)
  os.write(acts, str(time.monotonic()).encode())
  THEN[run['then']]()


def step():
  multihost_utils.process_allgather(np.ones(100))


def refuse():
  raise errors.UserError('The data has come to an end.')


def fail():
  raise ValueError('a defect')


THEN = {
  'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
  'hang': lambda: os.kill(os.getpid(), signal.SIGSTOP),
  'interrupt': lambda: os.kill(os.getpid(), signal.SIGINT),
  'refuse': refuse,
  'fail': fail,
}

if __name__ == '__main__':
  main()
