"""TensorFlow and seqio, imported once and quietly.

TensorFlow greets with lines on file descriptor 2 that none of its switches
silences (no CUDA driver, oneDNN). They say nothing to somebody who trains with
JAX and hide what matters, so exactly these lines are held back during the
import; whatever else is written then is passed on. TensorFlow reads and packs
text here and nothing more: it is kept off the accelerators, and Keras (with
Matplotlib) and TensorFlow Text, which it and seqio import and only
SentencePiece needs, are imported on their first use, which saves every other
run their time and memory.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
import types

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


@contextlib.contextmanager
def _without_keras():
  """Keeps TensorFlow from importing Keras; `tf.keras` still will."""
  switch = 'TF_USE_LEGACY_KERAS'
  if switch in os.environ or importlib.util.find_spec('tf_keras'):
    yield
    return
  # TensorFlow tries an older Keras, which is not there, and does without.
  os.environ[switch] = '1'
  try:
    yield
  finally:
    del os.environ[switch]


class _OnFirstUse(types.ModuleType):
  """Stands in for a module until one of its names is asked for."""

  def __getattr__(self, name: str):
    if name.startswith('__') and name != '__path__':
      raise AttributeError(name)  # Import and inspection ask, not a user.
    if sys.modules.get(self.__name__) is self:
      del sys.modules[self.__name__]
    return getattr(importlib.import_module(self.__name__), name)


os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
with _without_greetings():
  sys.modules.setdefault('tensorflow_text', _OnFirstUse('tensorflow_text'))
  with _without_keras():
    import tensorflow as tf
  import seqio
  import tensorflow_datasets as tfds

  # A context that exists already (a notebook) cannot be changed any more.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')

__all__ = ['seqio', 'tf', 'tfds']
