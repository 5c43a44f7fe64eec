"""Every kernel through the real TPU compiler, without a TPU.

`bash tools/test.sh --tpu` installs that compiler and runs these.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from t5x_variants import activations

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
  pytest.mark.tpu_compiler,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='the TPU compiler needs libtpu: bash tools/test.sh --tpu',
  ),
]


def compiled_for(topology):
  result = subprocess.run(
    [sys.executable, str(ROOT / 'tests/support/tpu_compile.py'), topology],
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert result.returncode == 0, result.stderr[-4000:]
  return result.stdout


@pytest.mark.parametrize(
  'topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1', 'tpu7x:2x2x1']
)
def test_the_table_compiles(topology):
  lines = compiled_for(topology).splitlines()
  # Each gated and not, each with and without stored pre-activations; and one
  # that is cut along F.
  assert len(lines) == 4 * len(activations.names()) + 1


def test_a_mesh_sums_and_gathers_nothing():
  assert set(compiled_for('v5e:4x4').split()) == {'all-reduce'}
