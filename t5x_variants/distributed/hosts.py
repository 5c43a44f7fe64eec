"""A run on several hosts, one process each: they meet, and they end together.

On TPU JAX finds the other hosts itself, and with --multiprocess_gpu under Slurm
and Open MPI; elsewhere every host is told by flags where host 0 is, how many
there are and which one it is. The names of the flags are t5x's. JAX's
coordination service judges who is alive; `membership` adds the sentence in
which each host ends.
"""

import contextlib
import glob
import itertools
import os
import pathlib
import secrets
import socket
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

from t5x_variants import errors, logs
from t5x_variants.distributed import membership

_MEETINGS = itertools.count()
# Seconds that a host may compile longer than another.
_PATIENT = 3600


@contextlib.contextmanager
def joined(chosen: flags.FlagValues) -> Iterator[None]:
  """A context in which all hosts are there; one that fails ends all.

  Args:
    chosen: values of the flags of `host_flags`.

  Raises:
    errors.UserError: flags that do not fit, or a port that is taken. With
      several hosts every other error ends the process here, with one sentence
      on each host.
  """
  member = _join(chosen)
  if member is None:
    yield
    return
  try:
    _check_count(chosen.process_count)
    if jax.process_index():
      logs.silence()
    meet()
    yield
    # So that a host that has ended is not taken for a dead one.
    meet()
  except errors.UserError as error:
    # A checkpoint may fail because another host is gone.
    member.fail(str(error), 2, may_follow=error.__cause__ is not None)
  except KeyboardInterrupt:
    member.fail('Ctrl-C ended the run.', 130, may_follow=False)
  except BaseException as error:
    traceback.print_exc()
    lines = str(error).splitlines() or ['']
    member.fail(f'{type(error).__name__}: {lines[0]}', 1, may_follow=True)
  member.leave()


def _join(chosen: flags.FlagValues) -> membership.Member | None:
  """Meets the other processes; None when there is but this one."""
  timeout, silence = chosen.initialization_timeout, chosen.heartbeat_timeout
  errors.check_positive('--initialization_timeout', timeout)
  if silence < membership.SHORTEST:
    raise errors.UserError(
      f'--heartbeat_timeout is {silence}; it must be {membership.SHORTEST} '
      'seconds or more.'
    )
  given = chosen.coordinator_address, chosen.process_count, chosen.process_index
  if any(value is not None for value in given):
    host, port = _check(*given)
    if chosen.process_count == 1:
      return None
    until = time.monotonic() + timeout
    if chosen.process_index == 0:
      _check_free(port)
    else:
      _reach(host, port, timeout)
    left = max(1.0, until - time.monotonic())
    return membership.join(*given, timeout=left, silence=silence)
  if not chosen.multiprocess_gpu and not _may_be_a_pod():
    return None
  try:
    return membership.join(timeout=timeout, silence=silence)
  except ValueError as error:
    if not chosen.multiprocess_gpu:
      return None  # One machine, of which no cluster knows.
    raise errors.UserError(
      'JAX finds no other hosts here: give --coordinator_address=HOST:PORT, '
      '--process_count and --process_index as well.'
    ) from error


def _check(address, count, index) -> tuple[str, int]:
  """The coordinator's host and port, from flags that fit together."""
  if None in (address, count, index):
    raise errors.UserError(
      'Several processes need --coordinator_address=HOST:PORT, '
      f'--process_count and --process_index, all three; given are {address}, '
      f'{count} and {index}.'
    )
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.UserError(
      f'--coordinator_address is {address!r}; it must be HOST:PORT of process '
      '0, such as 10.0.0.2:8476.'
    )
  errors.check_positive('--process_count', count)
  if not 0 <= index < count:
    raise errors.UserError(
      f'--process_index is {index}; with --process_count={count} it must be '
      f'from 0 to {count - 1}, another one on every host.'
    )
  return host.strip('[]'), int(port)


def _check_free(port: int) -> None:
  """Refuses a port that is taken: JAX would share it with its owner."""
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    raise errors.UserError(
      f'Port {port} of this host cannot be opened ({errors.reason(error)}): '
      'another process has it, maybe a second one with --process_index=0. '
      'Choose another port in --coordinator_address, the same on all hosts.'
    ) from error


def _reach(host: str, port: int, timeout: float) -> None:
  """Waits until host 0 can be reached; JAX would not say that it cannot."""
  until = time.monotonic() + timeout
  while True:
    try:
      left = max(0.1, until - time.monotonic())
      socket.create_connection((host, port), timeout=left).close()
      return
    except OSError as error:
      if time.monotonic() > until - 0.5:
        raise errors.UserError(
          f'Host 0 cannot be reached at {host}:{port} within {timeout:.0f} s '
          f'({error}): check --coordinator_address, that host 0 was started, '
          'and that its firewall lets this port through.'
        ) from error
      time.sleep(0.25)


def _check_count(count: int | None) -> None:
  """JAX goes by what host 0 was told, and the others may have been told else.

  Raises:
    errors.UserError: this host was told another number of processes.
  """
  if count not in (None, jax.process_count()):
    raise errors.UserError(
      f'--process_count is {count} here and {jax.process_count()} on host 0: '
      'give every host the same.'
    )


def _may_be_a_pod() -> bool:
  """Whether JAX should be asked to look for other hosts."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms:
    return False
  # As the driver shows a TPU's chips to a virtual machine.
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def meet() -> None:
  """Waits until all hosts are here, however long one of them compiles.

  Collectives on CPU give up when another host comes 30 seconds late.
  """
  if jax.process_count() > 1:
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f't5x_variants-{next(_MEETINGS)}', timeout_ms=_PATIENT * 1000)


def largest(value: int) -> int:
  """The largest of all hosts' values."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def check_shared(folder: pathlib.Path, patience: float = 10.0) -> None:
  """Refuses a folder that not all hosts see: each would write its own part.

  Host 0 writes a file with a name drawn at random, and all look for it.

  Args:
    folder: exists on this host.
    patience: seconds that a shared file system may take to show the file.

  Raises:
    errors.UserError: on all hosts, naming those that do not see it.
  """
  if jax.process_count() == 1:
    return
  token = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(30)))
  probe = folder / f'.seen-by-all-hosts-{int(token)}'
  if jax.process_index() == 0:
    probe.touch()
  multihost_utils.sync_global_devices('probe of MODEL_DIR')
  until = time.monotonic() + patience
  while not (seen := probe.exists()) and time.monotonic() < until:
    time.sleep(0.2)
  everyone = multihost_utils.process_allgather(np.bool_(seen))
  if jax.process_index() == 0:
    probe.unlink()
  blind = np.flatnonzero(~np.asarray(everyone)).tolist()
  if blind:
    raise errors.UserError(
      f'MODEL_DIR {folder} is not shared: what host 0 writes there, host(s) '
      f'{", ".join(map(str, blind))} of {len(everyone)} do not see. All hosts '
      'write parts of one checkpoint: give a folder that all of them mount.'
    )
