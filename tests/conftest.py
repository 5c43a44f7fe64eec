"""What every test stands on: eight simulated devices, gin wiped clean."""

import importlib
import os
import signal
import tempfile
import warnings

# Before jax is imported anywhere: a CPU that looks like eight devices, and
# programs that are quick to compile, which is nearly all that they cost.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
for _flag, _value in (
  ('--xla_force_host_platform_device_count', 8),
  ('--xla_backend_optimization_level', 0),
):
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} {_flag}={_value}'
    )

# Many tests build the same small programs; each is compiled once a session, in
# the processes that tests start and in pytest-xdist's workers too.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '0'

# A shell that starts the tests in the background has them ignore Ctrl-C, and
# so all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import gin  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Where arrays have shapes, each shape that is written is checked. Elsewhere
# tests give values of wrong kinds on purpose, to see how they are refused.
# Functions of JAX take arrays of NumPy, and so do ours.
jaxtyping.Array = jax.Array | np.ndarray
jaxtyping.install_import_hook(
  [
    *(f't5x_variants.{room}' for room in ('activations', 'kernels', 'model')),
    *(f't5x_variants.training.{name}' for name in ('losses', 'train_step')),
  ],
  'shape_checks.checked',
)

# The first example compiles, so that no deadline fits; the same examples each
# time, so that a failure is one everywhere.
hypothesis.settings.register_profile(
  'quick', deadline=None, max_examples=30, derandomize=True
)
hypothesis.settings.load_profile('quick')


@pytest.fixture(autouse=True)
def _no_gin_configuration():
  """A test sees the gin files it reads, and no other test's."""
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture
def unchecked():
  """Hands what is no shape or type of a function to it, for its own answer."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


@pytest.fixture
def t5x_module():
  """Imports a module of google-research/t5x, or skips: it is not on PyPI."""

  def load(name):
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return importlib.import_module(name)
    except ImportError as error:
      pytest.skip(
        f'no {error.name}: pip install -e ".[t5x]", and checkouts of '
        'google-research/t5x, google/airio and google-research/jestimator on '
        'PYTHONPATH (docs/from_t5x.md)'
      )

  return load
