"""The flags of a run on several hosts; JAX is not imported for them."""

from absl import flags


def define_flags() -> None:
  """Defines the flags of entry points that run on several hosts."""
  flags.DEFINE_string(
    'coordinator_address',
    None,
    'HOST:PORT of process 0, for several processes where JAX does not find '
    'them itself, as it does on TPU.',
  )
  flags.DEFINE_integer('process_count', None, 'How many processes there are.')
  flags.DEFINE_integer('process_index', None, 'Which one this is, from 0.')
  flags.DEFINE_integer(
    'initialization_timeout', 300, 'Seconds to wait for all processes.'
  )
  flags.DEFINE_integer(
    'heartbeat_timeout',
    40,
    'Seconds without a sign of life after which a process counts as dead.',
  )
  flags.DEFINE_bool(
    'multiprocess_gpu',
    False,
    'There are several processes. Without --coordinator_address JAX looks for '
    'them (Slurm, Open MPI); on TPU it always does.',
  )
