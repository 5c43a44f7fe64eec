"""t5x's own launchers, by gin files alone: bash tools/test.sh --t5x.

Needs google-research/t5x on PYTHONPATH (docs/from_t5x.md) and some minutes;
prints what the learned coefficients did.
"""

import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import forked
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from t5x_cases import write_own_task

from t5x_variants import activations
from t5x_variants.weights import t5x

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = [
  pytest.mark.t5x,
  pytest.mark.timeout(3600),
  # t5x writes where each array lay; here they are read as they come.
  pytest.mark.filterwarnings('ignore:Sharding info'),
]
FILES = ('models/tiny', 'variants/{variant}', 'data/{data}', 't5x/{run}')
# A tiny model of t5x's own, with our task in place of one of theirs.
THEIR_MODEL = """
include 't5x/examples/t5/t5_1_1/tiny.gin'
from __gin__ import dynamic_registration
from t5x.examples.t5 import network
from t5x_variants.data.text import vocabularies
VOCABULARY = @vocabularies.byte()
network.T5Config.vocab_size = 384
network.T5Config.mlp_dim = 48
"""
# Coefficients with an axis that nobody has heard of.
THEIR_ACTIVATION = """
import flax.linen as nn
from flax.linen import partitioning

class Mine(nn.Module):
  @nn.compact
  def __call__(self, z):
    scale = partitioning.param_with_axes(
        'scale', nn.initializers.ones, (3,), axes=('degrees',))
    return scale[0] * nn.relu(z)

def mine(z):
  return Mine(name='activation')(z)
"""


def command(folder, script, *arguments, fails=False, devices=1):
  """Runs `python -m t5x.SCRIPT` in a folder; returns what it wrote."""
  module = script if '.' in script else f't5x.{script}'
  log = folder / f'{module}.log'
  log.unlink(missing_ok=True)
  process = forked.start(
    [module, f'--gin_search_paths={ROOT}', *arguments],
    output=log,
    folder=folder,
    # Read when the first device is asked for, which no import does. Quick to
    # compile, which is most of what a short run costs.
    environment={
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
      '--xla_backend_optimization_level=0'
    },
    modules=('t5x.train', 't5x.eval', 't5x.infer'),
  )
  process.join(1200)
  process.kill()
  process.join()
  said = log.read_text()
  assert (process.exitcode != 0) == fails, said[-4000:]
  return said


@pytest.fixture
def launch(t5x_module, tmp_path):
  """Runs `python -m t5x.SCRIPT` far from the repository; returns its words."""
  t5x_module('t5x')
  return functools.partial(command, tmp_path)


def files(variant, run, data='embedded'):
  values = {'variant': variant, 'run': run, 'data': data}
  return [f'--gin_file=gin/{file.format(**values)}.gin' for file in FILES]


def bindings(**values):
  return [f'--gin.{name}={value!r}' for name, value in values.items()]


def parameters(checkpoint):
  """A checkpoint's parameters by name, as t5x wrote them."""
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.restore(str(checkpoint / 'state'))
  return traverse_util.flatten_dict(tree['target'], sep='/')


def coefficients(checkpoint):
  return {
    k: v for k, v in parameters(checkpoint).items() if '/activation/' in k
  }


def names_of(coefficients):
  """Those of two layers a stack."""
  return {
    f'{stack}/layers_{index}/mlp/activation/{name}'
    for stack in ('encoder', 'decoder')
    for index in range(2)
    for name in coefficients
  }


def records(folder, pattern):
  (file,) = folder.glob(pattern)
  return [json.loads(line) for line in file.read_text().splitlines()]


def train(launch, model_dir, variant, steps, **values):
  values = {
    # Rates that do not depend on how long the run will be.
    'schedules.rsqrt.decay_fraction': 0.0,
    'COEFFICIENT_DECAY_FRACTION': 0.0,
    'CHECKPOINT_PERIOD': 20,
    'EVAL_PERIOD': 20,
    'EVAL_STEPS': 2,
  } | values
  said = launch(
    'train',
    *files(variant, 'pretrain'),
    *bindings(MODEL_DIR=str(model_dir), TRAIN_STEPS=steps, **values),
  )
  return {
    int(step): float(loss)
    for step, loss in re.findall(
      r'\[(\d+)\] collection=train .*loss_per_nonpadding_target_token=([\d.]+)',
      said,
    )
  }


@pytest.mark.parametrize('variant', ['geglu', 'rational', 'polynorm'])
def test_train_restart_evaluate_score_and_predict(variant, launch, tmp_path):
  run = tmp_path / 'run'
  losses = train(launch, run, variant, 20)
  losses |= train(launch, run, variant, 40)
  assert sorted(losses) == [10, 20, 30, 40]
  assert losses[40] < losses[20] < losses[10] < math.log(384)
  names = sorted(path.name for path in run.glob('checkpoint_*'))
  assert names == ['checkpoint_0', 'checkpoint_20', 'checkpoint_40']

  start, end = (coefficients(run / f'checkpoint_{n}') for n in (0, 40))
  record = {'rational': 'rational', 'polynorm': 'polynorm'}.get(variant)
  initial = activations.get(record).init() if record else {}
  assert set(end) == names_of(initial)
  for name, value in end.items():
    print(variant, name, start[name], '->', value)
    np.testing.assert_allclose(start[name], initial[name.split('/')[-1]])
    # A step has an RMS of 0.0005 at most. A bias that starts at 0 ends at least
    # two such steps away; Adafactor's relative steps hardly move it.
    change = value - start[name]
    assert np.sqrt(np.mean(change**2)) < 40 * 0.0005, name
    assert np.abs(change).max() > 2 * 0.0005, name
  # One set per layer: they went different ways.
  assert len({str(v) for v in end.values()}) == len(end)

  newest = str(run / 'checkpoint_40')
  launch(
    'eval',
    *files(variant, 'eval'),
    *bindings(CHECKPOINT_PATH=newest, EVAL_OUTPUT_DIR=str(run)),
  )
  (metrics,) = records(run / 'inference_eval', '*-metrics.jsonl')
  print(variant, losses, metrics)
  assert metrics['step'] == 40 and metrics['target_tokens'] > 10_000
  assert abs(metrics['nats_per_token'] - losses[40]) < 0.5

  for mode in ('score', 'predict'):
    launch(
      'infer',
      *files(variant, 'infer'),
      *bindings(
        CHECKPOINT_PATH=newest,
        INFER_OUTPUT_DIR=str(run / mode),
        INFER_MODE=mode,
      ),
    )
  scored = records(run / 'score', '*.jsonl-00000-of-00001')
  nats = -sum(r['score'] for r in scored) / metrics['target_tokens']
  assert abs(nats / metrics['nats_per_token'] - 1) < 1e-4
  predicted = records(run / 'predict', '*.jsonl-00000-of-00001')
  assert len(predicted) == len(scored) > 100
  assert any(r['prediction'] for r in predicted)


def test_a_restart_is_an_unbroken_run(launch, tmp_path):
  """Bit for bit, so that no row of data was read twice or left out."""
  one = train(launch, tmp_path / 'one', 'rational_glu', 40)
  two = train(launch, tmp_path / 'two', 'rational_glu', 20)
  two |= train(launch, tmp_path / 'two', 'rational_glu', 40)
  assert one == two
  one, two = (
    parameters(tmp_path / name / 'checkpoint_40') for name in ('one', 'two')
  )
  for name, value in one.items():
    np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_finetuning_on_pairs_begins_at_a_checkpoint(launch, tmp_path, pairs):
  """Of other data than it was pretrained on; a restart goes on."""
  first, second = tmp_path / 'first', tmp_path / 'second'
  train(launch, first, 'polynorm', 20)

  def tune(steps):
    return launch(
      'train',
      *files('polynorm', 'finetune', 'pairs'),
      *bindings(
        PAIRS=pairs,
        MODEL_DIR=str(second),
        TRAIN_STEPS=steps,
        INITIAL_CHECKPOINT_PATH=str(first / 'checkpoint_20'),
        CHECKPOINT_PERIOD=10,
        EVAL_PERIOD=10,
        EVAL_STEPS=1,
      ),
    )

  assert 'learning_rate=0.001' in tune(30)
  before = parameters(first / 'checkpoint_20')
  after = parameters(second / 'checkpoint_20')
  for name, value in before.items():
    np.testing.assert_array_equal(value, after[name], err_msg=name)
  tune(40)
  metrics = records(second / 'inference_eval', '*-metrics.jsonl')
  assert [record['step'] for record in metrics] == [30, 40]
  assert metrics[1]['nats_per_token'] < metrics[0]['nats_per_token']


def contents(folder):
  """Every file's bytes, by its path."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


# One layer each, so that most of a test's time is not this model's.
MICRO = {
  'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 16},
  'BATCH_SIZE': 8,
  'NUM_MICROBATCHES': 1,
  'MLP_DIM': 48,
  'network.T5Config.emb_dim': 32,
  'network.T5Config.num_encoder_layers': 1,
  'network.T5Config.num_decoder_layers': 1,
}
PERIODS = {'CHECKPOINT_PERIOD': 4, 'EVAL_PERIOD': 4, 'EVAL_STEPS': 1}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """The micro model's data, which is read in no time."""
  lines = [
    json.dumps({'inputs': f'{n} plus one', 'targets': str(n + 1)})
    for n in range(200)
  ]
  file = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
  file.write_text('\n'.join(lines))
  return str(file)


def micro(launch, run, model_dir, variant, steps, fails=False, **values):
  """Trains the micro model by a run file of gin/t5x."""
  return launch(
    'train',
    *files(variant, run, 'pairs'),
    *bindings(
      MODEL_DIR=str(model_dir),
      TRAIN_STEPS=steps,
      **MICRO,
      **PERIODS,
      **values,
    ),
    fails=fails,
  )


@pytest.fixture(scope='module')
def relu(pairs, tmp_path_factory):
  """A run of four steps with ReLU, and its data."""
  if importlib.util.find_spec('t5x') is None:
    pytest.skip('no t5x')
  folder = tmp_path_factory.mktemp('relu')
  launch = functools.partial(command, folder)
  micro(launch, 'pretrain', folder / 'run', 'relu', 4, PAIRS=pairs)
  return folder / 'run', {'PAIRS': pairs}


def test_a_run_directory_stays_of_one_variant(relu, launch, tmp_path):
  """No other goes on in it, evaluates it or fine-tunes it, without a word."""
  run, other, data = tmp_path / 'run', tmp_path / 'other', relu[1]
  shutil.copytree(relu[0], run)
  before = contents(run)
  said = micro(launch, 'pretrain', run, 'gelu', 8, fails=True, **data)
  assert "holds another run: ACTIVATION was 'relu' and is now 'gelu'" in said
  checkpoint = str(run / 'checkpoint_4')
  said = launch(
    'eval',
    *files('gelu', 'eval', 'pairs'),
    *bindings(
      CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=str(other), **MICRO, **data
    ),
    fails=True,
  )
  assert 'checkpoint_4 is of another model: ACTIVATION was' in said
  data = data | {'INITIAL_CHECKPOINT_PATH': checkpoint}
  said = micro(launch, 'finetune', other, 'gelu', 8, fails=True, **data)
  assert '--gin.INITIAL_CHECKPOINT_PARTIAL=True' in said
  assert contents(run) == before and not other.exists()
  # Another rate is no other run.
  micro(launch, 'pretrain', run, 'relu', 8, LEARNING_RATE=0.5, **relu[1])
  assert 'LEARNING_RATE = 0.5' in (run / 'config.gin').read_text()
  assert (run / 'config-4.gin').read_bytes() == before['config.gin']


@pytest.mark.parametrize(
  'variant, left_out, begins_anew',
  [
    ('gelu', (), ''),
    ('rational', (('.*/activation/.*', None),), '/activation/'),
    ('geglu', (('.*/mlp/w.*', None),), '/mlp/'),
    ('rational_glu', (('.*/mlp/.*', None),), '/mlp/'),
  ],
)
def test_another_variant_starts_from_a_checkpoint(
  variant, left_out, begins_anew, relu, launch, tmp_path
):
  """t5x's assignment_map and fallback_to_scratch, as docs/from_t5x.md says."""
  said = micro(
    launch,
    'finetune',
    tmp_path / 'run',
    variant,
    6,
    INITIAL_CHECKPOINT_PATH=str(relu[0] / 'checkpoint_4'),
    INITIAL_CHECKPOINT_PARTIAL=True,
    ASSIGNMENT_MAP=left_out,
    **relu[1],
  )
  before = parameters(relu[0] / 'checkpoint_4')
  after = parameters(tmp_path / 'run' / 'checkpoint_4')
  kept = {name for name in after if not begins_anew or begins_anew not in name}
  assert kept <= before.keys()
  for name in kept:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  assert (kept == after.keys()) == (not begins_anew)
  for name in after.keys() - kept:
    assert re.search(f'Initializing param=.*{name}', said), name
  for name, value in parameters(tmp_path / 'run' / 'checkpoint_6').items():
    assert np.all(np.isfinite(value)) and np.any(value != after[name]), name


@pytest.mark.parametrize('script', ['t5x', 't5x_variants'])
def test_a_task_of_one_s_own(script, launch, tmp_path):
  """By the gin file of docs/from_t5x.md, which imports its module."""
  write_own_task(tmp_path)
  run = 'gin/runs' if script == 't5x_variants' else 'gin/t5x'
  values = MICRO | {'MODEL_DIR': 'run', 'TRAIN_STEPS': 2, **PERIODS}
  launch(
    f'{script}.train',
    *files('rational', 'x')[:2],
    '--gin_file=my_task.gin',
    f'--gin_file={run}/pretrain.gin',
    *bindings(**values),
  )
  steps = {'t5x': 'checkpoint_*', 't5x_variants': 'checkpoints/*'}[script]
  names = [path.name for path in (tmp_path / 'run').glob(steps)]
  assert any(name.endswith('2') for name in names), names


def test_t5x_trains_on_where_our_trainer_stopped(pairs, launch, tmp_path):
  """By export_t5x; and `weights.t5x` reads back what t5x was given."""
  run, out, tuned = (tmp_path / name for name in ('run', 'out', 'tuned'))
  launch(
    't5x_variants.train',
    *files('rational', 'x', 'pairs')[:-1],
    '--gin_file=gin/runs/pretrain.gin',
    *bindings(
      MODEL_DIR=str(run), TRAIN_STEPS=4, PAIRS=pairs, **MICRO, **PERIODS
    ),
  )
  launch('t5x_variants.export_t5x', f'--run={run}', f'--output={out}')
  given = t5x.open_checkpoint(str(out)).read()
  start = {'INITIAL_CHECKPOINT_PATH': str(out / 'checkpoint_4'), 'PAIRS': pairs}
  said = micro(launch, 'finetune', tuned, 'gelu', 9, fails=True, **start)
  assert 'ACTIVATION was @rational() and is now' in said
  micro(launch, 'finetune', tuned, 'rational', 9, **start)
  restored = parameters(tuned / 'checkpoint_4')
  assert restored.keys() == given.keys()
  for name, value in restored.items():
    np.testing.assert_array_equal(value, given[name], err_msg=name)
  for name, value in parameters(tuned / 'checkpoint_9').items():
    assert np.all(np.isfinite(value)) and np.any(value != given[name]), name


def test_t5x_s_run_file_with_our_model(launch, tmp_path):
  """t5x's own first, because it resets what gin/data sets."""
  names = files('rational', 'model')
  launch(
    'train',
    '--gin_file=t5x/configs/runs/pretrain.gin',
    *names,
    '--gin_file=gin/t5x/mesh.gin',
    '--gin_file=gin/t5x/optimizer.gin',
    '--gin_file=gin/t5x/model_dir.gin',
    *bindings(
      MODEL_DIR=str(tmp_path / 'run'),
      TRAIN_STEPS=2,
      DROPOUT_RATE=0.1,
      USE_CACHED_TASKS=False,
    ),
  )
  assert len(coefficients(tmp_path / 'run' / 'checkpoint_2')) == 8


def test_a_scanned_model_trains_and_is_searched_by_beams(launch, tmp_path):
  """Coefficients as [layers, K], Adafactor's batch axis; the cache's too."""
  scanned = {'SCAN_LAYERS': True, 'REMAT_POLICY': 'minimal'}
  run = tmp_path / 'run'
  train(launch, run, 'polynorm', 10, CHECKPOINT_PERIOD=10, **scanned)
  found = coefficients(run / 'checkpoint_10')
  assert {k: v.shape for k, v in found.items()} == {
    f'{stack}/layers/mlp/activation/{name}': (2, size)
    for stack in ('encoder', 'decoder')
    for name, size in (('weight', 3), ('bias', 1))
  }
  for value in found.values():
    assert len(np.unique(value, axis=0)) == 2
  launch(
    'infer',
    *files('polynorm', 'infer'),
    *bindings(
      CHECKPOINT_PATH=str(run / 'checkpoint_10'),
      INFER_OUTPUT_DIR=str(run / 'predict'),
      BEAM_SIZE=3,
      TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16},
      BATCH_SIZE=64,
      **scanned,
    ),
  )
  assert len(records(run / 'predict', '*.jsonl-00000-of-00001')) > 100


def test_the_kernels_find_the_mesh_that_t5x_enters(launch, tmp_path):
  """MODEL_AXIS_SIZE is followed; dropout goes to XLA, and that is said."""
  said, ended = {}, {}
  kernels = {'FFN_IMPLEMENTATION': 'pallas_interpret'}
  for name, values in {
    'xla': {'FFN_IMPLEMENTATION': 'xla', 'MODEL_AXIS_SIZE': 1},
    'kernels': kernels | {'MODEL_AXIS_SIZE': 4},
    'dropout': kernels | {'MODEL_AXIS_SIZE': 2, 'DROPOUT_RATE': 0.1},
  }.items():
    said[name] = launch(
      'train',
      *files('rational', 'pretrain'),
      *bindings(
        MODEL_DIR=str(tmp_path / name), TRAIN_STEPS=4, EVAL_STEPS=1, **values
      ),
      devices=4,
    )
    ended[name] = parameters(tmp_path / name / 'checkpoint_4')
  for name, value in ended['xla'].items():
    np.testing.assert_allclose(
      value, ended['kernels'][name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  found = [text.count('runs as XLA, not as pallas') for text in said.values()]
  assert found == [0, 0, 1]
  shapes = [
    re.search(r'global_mesh devices shape: (.*)', text)[1]
    for text in said.values()
  ]
  assert shapes == ['(4, 1)', '(1, 4)', '(2, 2)']


THEIR_FILES = (
  '--gin_file=theirs.gin',
  '--gin_file=t5x/configs/runs/pretrain.gin',
  '--gin_file=gin/data/embedded.gin',
  '--gin_file=gin/variants/rational_glu.gin',
  '--gin_file=gin/t5x/activations.gin',
  '--gin_file=gin/t5x/optimizer.gin',
  '--gin_file=gin/t5x/model_dir.gin',
)
THEIR_VALUES = {'BATCH_SIZE': 8, 'DROPOUT_RATE': 0.0, 'USE_CACHED_TASKS': False}


def test_our_activations_in_t5x_s_network(launch, tmp_path):
  """One set per layer, and each moves."""
  (tmp_path / 'theirs.gin').write_text(THEIR_MODEL)
  run = tmp_path / 'run'
  launch(
    'train',
    *THEIR_FILES,
    *bindings(MODEL_DIR='run', TRAIN_STEPS=10, **THEIR_VALUES),
  )
  start, end = (coefficients(run / f'checkpoint_{n}') for n in (0, 10))
  assert set(end) == names_of(('numerator', 'denominator'))
  for name, value in end.items():
    assert np.any(value != start[name]), name


def test_an_unknown_axis_is_named_and_the_cure_works(launch, tmp_path):
  (tmp_path / 'theirs.gin').write_text(THEIR_MODEL)
  (tmp_path / 'mine.py').write_text(THEIR_ACTIVATION)
  (tmp_path / 'mine.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from t5x.examples.t5 import network\n'
    'import mine\n'
    "network.T5Config.mlp_activations = (@mine.mine, 'linear')\n"
  )
  arguments = [
    *THEIR_FILES,
    '--gin_file=mine.gin',
    *bindings(MODEL_DIR=str(tmp_path / 'run'), TRAIN_STEPS=1, **THEIR_VALUES),
  ]
  said = launch('train', *arguments, fails=True)
  assert "no factor rule for the parameter axis 'degrees'" in said
  launch(
    'train', *arguments, "--gin.for_t5x.factor_rules.more={'degrees': 'none'}"
  )


@pytest.mark.parametrize(
  'change, message',
  [
    (
      "--gin.ACTIVATION='gellu'",
      "no activation 'gellu' (did you mean",
    ),
    ('--gin_file=gin/data/prepared.gin', 'prepared data (gin/data/prepared'),
    ('--gin.VOCAB_SIZE=256', '359 ids, but the model VOCAB_SIZE=256'),
    ('--gin.MODEL_AXIS_SIZE=2', 'MODEL_AXIS_SIZE is 2: 1 process(es) with 1'),
  ],
)
def test_slips_end_in_a_sentence_that_names_the_cure(
  change, message, launch, tmp_path
):
  said = launch(
    'train',
    *files('rational', 'pretrain'),
    change,
    *bindings(MODEL_DIR=str(tmp_path / 'run'), TRAIN_STEPS=2),
    fails=True,
  )
  assert message in said[-2000:]
  assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='the TPU compiler needs libtpu: bash tools/test.sh --tpu installs it',
)
@pytest.mark.parametrize(
  'topology, size, mesh',
  [
    ('v5e:2x4', 2, {'data': 4, 'model': 2}),
    ('v5p:2x2x2', 4, {'data': 2, 'model': 4}),
    ('v6e:4x4', 4, {'data': 4, 'model': 4}),
    ('tpu7x:2x2x1', 4, {'data': 2, 'model': 4}),
  ],
)
def test_a_step_with_kernels_compiles_for_the_tpus(
  topology, size, mesh, t5x_module
):
  """t5x's step, partitioner and mesh; the TPU compiler, without a TPU."""
  t5x_module('t5x')
  paths = [str(ROOT), *filter(None, sys.path)]
  script = str(ROOT / 'tests/support/t5x_compile.py')
  done = subprocess.run(
    [sys.executable, script, topology, str(size)],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(paths), 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  print(topology, done.stdout)
  said = done.stdout.splitlines()[-1]
  assert said.startswith(str(mesh))
  # Encoder and decoder, forward and backward.
  assert int(re.search(r'kernels: (\d+)', said)[1]) >= 4
