"""TensorFlow and seqio, imported once and quietly.

TensorFlow greets with lines on file descriptor 2 that none of its switches
silences (no CUDA driver, oneDNN). They say nothing to somebody who trains with
JAX and hide what matters, so exactly these lines are held back during the
import; whatever else is written then is passed on. TensorFlow reads and packs
text here and nothing more: it is kept off the accelerators.
"""

import contextlib
import os
import sys
import tempfile

_GREETINGS = (
  b'absl::InitializeLog()',
  b'port.cc:',
  b'cudart_stub.cc:',
  b'computation_placer.cc:',
  b'cuda_platform.cc:',
)


@contextlib.contextmanager
def _without_greetings():
  """Holds back TensorFlow's greetings, passes every other line on."""
  try:
    sys.stderr.flush()
    saved = os.dup(2)
  except (AttributeError, OSError):  # There is no standard error.
    yield
    return
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      held.seek(0)
      for line in held:
        if not any(greeting in line for greeting in _GREETINGS):
          os.write(2, line)


os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
with _without_greetings():
  import seqio
  import tensorflow as tf

  # A context that exists already (a notebook) cannot be changed any more.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')

__all__ = ['seqio', 'tf']
