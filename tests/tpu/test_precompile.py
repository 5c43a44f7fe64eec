"""The precompile command: its errors here, its compiler where libtpu is."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from t5x_variants.tpu import report

ROOT = pathlib.Path(__file__).parents[2]
FILES = (
  'gin/models/tiny.gin',
  'gin/variants/rational.gin',
  'gin/runs/precompile.gin',
)

compiler = pytest.mark.tpu_compiler
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the TPU compiler needs libtpu: bash tools/test.sh --tpu',
)


def precompile(*arguments, files=FILES):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      't5x_variants.precompile',
      *(f'--gin_file={file}' for file in files),
      *arguments,
    ],
    cwd=ROOT,
    env=os.environ
    | {'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    capture_output=True,
    text=True,
  )


SMALL = (
  '--gin.SCAN_LAYERS=True',
  '--gin.BATCH_SIZE=16',
  '--gin.NUM_MICROBATCHES=1',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
)


@compiler
@needs_libtpu
@pytest.mark.parametrize('topology', ['v5e-4', 'v5p-8', 'v6e-4', '7x-8'])
def test_a_scanned_step_compiles_for(topology, tmp_path):
  """Over a mesh with both axes; the figures are those of its sizes."""
  result = precompile(
    f'--topology={topology}',
    *SMALL,
    '--gin.MODEL_AXIS_SIZE=2',
    "--gin.PROGRAMS=('train',)",
    f'--record={tmp_path / "record.json"}',
  )
  assert result.returncode == 0, result.stderr[-4000:]
  record = json.loads((tmp_path / 'record.json').read_text())
  train = record['programs']['train']
  devices = 8 if topology == '7x-8' else 4
  assert record['mesh'] == [devices // 2, 2]
  # Most parameters are split in two; the state is there all the time.
  assert record['count'] * 2 < record['params'] < record['count'] * 2.1
  state = record['params'] + record['optimizer']
  assert state < train['peak'] < record['usable']
  assert train['peak'] < 2 * record['estimate']
  # Every gradient is summed over `data`, in bfloat16 or float32.
  assert train['moved']['all-reduce'] > record['params'] / 2
  assert train['unknown_loops'] == 0


@compiler
@needs_libtpu
def test_what_does_not_fit_names_a_cure_that_fits():
  arguments = (
    '--topology=v5e-4',
    '--gin.SCAN_LAYERS=True',
    '--gin.BATCH_SIZE=65536',
    "--gin.PROGRAMS=('train',)",
  )
  begun = time.monotonic()
  result = precompile(*arguments)
  seconds = time.monotonic() - begun
  assert result.returncode == 1, result.stderr[-4000:]
  assert 'DOES NOT FIT' in result.stdout
  # Alone it takes six CPU seconds; a busy machine may need more time.
  assert seconds < 200
  flags = re.search('Nearest settings that fit.*: add (.*)', result.stdout)[1]
  changed_plan = precompile(*arguments, *shlex.split(flags))
  assert changed_plan.returncode == 0, (
    changed_plan.stdout + changed_plan.stderr[-4000:]
  )


def record(**changes):
  train = {
    'program': 'train',
    'usable': 16 * 2**30,
    'chips': 256,
    'flops': {'encoder': 256e12, 'decoder': 128e12},
    'peak': 4 * 2**30,
    'moved': {'all-reduce': 600_000_000},
    'unknown_loops': 0,
    'lower_seconds': 2.0,
    'compile_seconds': 100.0,
  }
  return {
    'topology': 'v5e-256',
    'shape': '16x16',
    'chips': 256,
    'devices_per_chip': 1,
    'mesh': [256, 1],
    'parameter_partitioning_dims': 1,
    'batch_size': 2048,
    'lengths': [512, 114],
    'num_microbatches': 1,
    'remat_policy': 'minimal',
    'usable': 16 * 2**30,
    'estimate': 5 * 2**30,
    'count': 250_000_000,
    'params': 2**30,
    'optimizer': 2**20,
    'programs': {'train': train},
  } | changes


def test_the_report_says_what_was_found():
  found = record()
  text = '\n'.join(report.head_lines(found))
  assert '250,000,000 in all' in text and 'data 256 x model 1' in text
  text = '\n'.join(report.program_lines(found['programs']['train']))
  assert '4.000 GiB' in text and '(25%)' in text
  # Of one chip of 256.
  assert '1.5' in text and '1 for input tokens, 0.5 for targets' in text
  assert 'all-reduce' in text and '600.00 MB' in text
