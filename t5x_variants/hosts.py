"""A run on several hosts, one process each: they meet, and they end together.

On TPU JAX finds the other hosts itself, and with --multiprocess_gpu under Slurm
and Open MPI; elsewhere every host is told by flags where host 0 is, how many
there are and which one it is. Names of the flags are t5x's. What one host fails
of, and which one has died, all others are told (`peers`).
"""

import contextlib
import glob
import itertools
import os
import pathlib
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

from t5x_variants import errors, metrics, peers

_MEETINGS = itertools.count()
# Seconds that a host may compile longer than another.
_PATIENT = 3600
# Seconds for which what fails here may be the consequence of a host's death.
_PATIENCE = 10.0


@contextlib.contextmanager
def joined(chosen: flags.FlagValues) -> Iterator[None]:
  """A context in which all hosts are there; one that fails ends all.

  Args:
    chosen: values of the flags of `host_flags`.

  Raises:
    errors.UserError: flags that do not fit, a host that is missing.
  """
  found = _join(chosen)
  if found is None:
    yield
    return
  try:
    if jax.process_index():
      metrics.silence()
    meet()
    yield
  except errors.UserError as error:
    # A checkpoint may fail because another host is gone.
    found.fail(str(error), 2, _PATIENCE if error.__cause__ else 0.5)
  except BaseException as error:
    traceback.print_exc()
    sys.stderr.flush()
    lines = str(error).splitlines() or ['']
    found.fail(f'{type(error).__name__}: {lines[0]}', 1, _PATIENCE)
  found.close()
  # Waits for all, so that host 0, which they talk to, is the last to go.
  jax.distributed.shutdown()


def _join(chosen) -> peers.Peers | None:
  """Meets the other processes; None when there is but this one."""
  timeout, silence = chosen.initialization_timeout, chosen.heartbeat_timeout
  errors.check_positive('--initialization_timeout', timeout)
  if silence <= 3 * peers.BEAT:
    raise errors.UserError(
      f'--heartbeat_timeout is {silence}; it must be more than '
      f'{3 * peers.BEAT:.0f} seconds.'
    )
  options = {
    'initialization_timeout': timeout,
    # A second net below that of `peers`.
    'heartbeat_timeout_seconds': 2 * silence,
    'shutdown_timeout_seconds': 2 * silence,
  }
  given = chosen.coordinator_address, chosen.process_count, chosen.process_index
  if any(value is not None for value in given):
    host, port = _check(*given)
    count, index = chosen.process_count, chosen.process_index
    if count == 1:
      return None
    found = peers.Peers(index, count, silence)
    if index == 0:
      found.gather_as_first(peers.listen(port + 1), timeout)
    else:
      found.gather_as_other(host, port + 1, timeout)
    found.watch()
    jax.distributed.initialize(*given, **options)
    return found
  if not chosen.multiprocess_gpu and not _may_be_a_pod():
    return None
  try:
    jax.distributed.initialize(**options)
  except ValueError as error:
    if not chosen.multiprocess_gpu:
      return None  # One machine, of which no cluster knows.
    raise errors.UserError(
      'JAX finds no other hosts here: give --coordinator_address=HOST:PORT, '
      '--process_count and --process_index as well.'
    ) from error
  return _meet(silence, timeout)


def _check(address, count, index) -> tuple[str, int]:
  """The coordinator's host and port, from flags that fit together."""
  if None in (address, count, index):
    raise errors.UserError(
      'Several processes need --coordinator_address=HOST:PORT, '
      f'--process_count and --process_index, all three; given are {address}, '
      f'{count} and {index}.'
    )
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65535:
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


def _may_be_a_pod() -> bool:
  """Whether JAX should be asked to look for other hosts."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms:
    return False
  # As the driver shows a TPU's chips to a virtual machine.
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def _meet(silence: float, timeout: float) -> peers.Peers | None:
  """The same connections where JAX has found the hosts."""
  count, index = jax.process_count(), jax.process_index()
  if count == 1:
    return None
  listener = peers.listen(0) if index == 0 else None
  mine = np.zeros(5, np.int32)
  if listener is not None:
    mine[:] = [*map(int, _own_address().split('.')), listener.getsockname()[1]]
  *address, port = map(int, multihost_utils.broadcast_one_to_all(mine))
  found = peers.Peers(index, count, silence)
  if listener is not None:
    found.gather_as_first(listener, timeout)
  else:
    found.gather_as_other('.'.join(map(str, address)), port, timeout)
  found.watch()
  return found


def _own_address() -> str:
  """This host's address on the network that leads to others."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('10.255.255.255', 1))  # Sends nothing.
      return probe.getsockname()[0]
    except OSError:
      return '127.0.0.1'  # There is no network.


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
