"""The low-data protocol: what is drawn depends on the seed and the task."""

import itertools
import json
import pathlib

import benchmark_files
import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import traverse_util

from t5x_variants import errors
from t5x_variants.analysis import sweeps
from t5x_variants.cli import command_line, gin_utils
from t5x_variants.data import config, pipeline
from t5x_variants.data.benchmarks import registry as benchmarks
from t5x_variants.data.tasks import examples, low_data
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.model import parameters
from t5x_variants.training import optimizer as optimizer_lib

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = {'inputs': 24, 'targets': 8}
# Two are the same; the golds of a question differ in number.
TRAIN = [
  (f'number {n // 2 * 2 if n < 2 else n}', ['x'] * (n % 3)) for n in range(60)
]
OFFICIAL = {'dev': [('official', ['y'])] * 3, 'dev2': [('second', [])] * 2}


def register(name, train=TRAIN):
  """A seqio task whose examples hold a field of changing length."""

  def rows(split, shuffle_files, seed=None):
    def generate():
      for inputs, answers in {'train': train, **OFFICIAL}[split]:
        yield {'inputs': inputs, 'targets': 'yes', 'more': {'golds': answers}}

    string = tf.TensorSpec([], tf.string)
    return tf.data.Dataset.from_generator(
      generate,
      output_signature={
        'inputs': string,
        'targets': string,
        'more': {'golds': tf.TensorSpec([None], tf.string)},
      },
    )

  feature = seqio.Feature(vocabularies.byte(), add_eos=True)
  # pytest-xdist may bring a module back to a process that had it before.
  if name in seqio.TaskRegistry.names():
    return name
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(rows, splits=['train', 'dev', 'dev2']),
    output_features={'inputs': feature, 'targets': feature},
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    metric_fns=[lambda targets, predictions: {'count': len(targets)}],
  )
  return name


@pytest.fixture(scope='module')
def name():
  return register('low_numbers')


def drawn(name, seed=1, train=20, validation=10, **options):
  options = {'test_split': ['dev', 'dev2']} | options
  task = low_data.task(name, seed, train, validation, **options)
  return task, {
    split: examples.open_split(task, LENGTHS, split)[0].inputs
    for split in low_data.SPLITS
  }


def test_a_draw_is_of_the_training_split_without_overlap(name):
  task, found = drawn(name)
  assert [len(found[split]) for split in low_data.SPLITS] == [20, 10, 5]
  both = found['train'] + found['validation']
  whole = [inputs for inputs, _ in TRAIN]
  assert all(both.count(text) <= whole.count(text) for text in both)
  assert found['test'] == ['official'] * 3 + ['second'] * 2
  assert low_data.task(name, 1, 20, 10, test_split=['dev', 'dev2']) == task
  everything = drawn(name, train=30, validation=30)[1]
  assert sorted(everything['train'] + everything['validation']) == sorted(whole)


def test_it_depends_on_the_seed_and_not_on_the_order(name):
  order = np.random.default_rng(0).permutation(len(TRAIN))
  other = register('low_numbers_shuffled', [TRAIN[i] for i in order])
  found = drawn(name)[1]
  assert drawn(other)[1] == found
  assert drawn(name, seed=2)[1]['train'] != found['train']
  # More development examples change no training example.
  more = drawn(name, validation=15)[1]
  assert more['train'] == found['train']
  assert more['validation'][:10] == found['validation']


def test_all_are_drawn_equally_often_and_independently():
  contents = [bytes([n]) for n in range(60)]
  draws = np.zeros((1000, 60))
  for seed in range(1000):
    order = sorted(range(60), key=lambda n: low_data.rank(seed, contents[n]))
    draws[seed, order[:15]] = 1
  # 1000 draws of a quarter, standard deviation 13.7; of pairs 7.6.
  assert (abs(draws.sum(0) - 250) < 5 * 13.7).all()
  together = (draws.T @ draws)[~np.eye(60, dtype=bool)]
  assert (abs(together - 1000 * 15 / 60 * 14 / 59) < 6 * 7.6).all()
  assert low_data.rank(1, b'a') != low_data.rank(1, b'a', 1)


def test_whole_examples_come_and_a_position_is_exact(name, tmp_path):
  task, _ = drawn(name)
  source = seqio.TaskRegistry.get(task).source
  golds = {
    e['inputs']: len(e['more']['golds'])
    for e in source.get_dataset('train').as_numpy_iterator()
  }
  whole = {inputs.encode(): len(more) for inputs, more in TRAIN}
  assert golds and all(whole[text] == size for text, size in golds.items())

  def batches(**options):
    options = {'shuffle': True, 'seed': 3, 'pack': False} | options
    return pipeline.Batches(task, LENGTHS, 'train', 4, **options)

  def rows(reader, count):
    return [next(reader)['encoder_input_tokens'].tolist() for _ in range(count)]

  first = batches()
  rows(first, 3)
  first.save(tmp_path)
  expected, again = rows(first, 9), batches()
  again.restore(tmp_path)
  assert rows(again, 9) == expected
  # Every epoch has each example once; two hosts share it.
  shares = [
    row
    for shard in (0, 1)
    for batch in batches(num_epochs=1, shard_index=shard, num_shards=2)
    for row in batch['encoder_input_tokens'].tolist()
  ]
  reader = batches()
  first, second = ([*itertools.chain(*rows(reader, 5))] for _ in range(2))
  assert sorted(shares) == sorted(first) == sorted(second) != second


@pytest.mark.parametrize('task', ['glue_stsb', 'squad'])
def test_a_benchmark_s_examples_and_metrics_survive(task, tmp_path):
  benchmark_files.write(tmp_path)
  folders = [str(tmp_path / each) for each in ('glue', 'super_glue', 'squad')]
  whole = benchmarks.register(task, vocabularies.byte(), *folders)
  name = low_data.task(whole, 5, 1, 1)
  (plain,) = examples.open_split(whole, LENGTHS, 'validation')
  (test,) = examples.open_split(name, LENGTHS, 'test')
  assert test.inputs == plain.inputs and len(test) > 1
  found = test.predict_metrics(test.targets)
  assert found == plain.predict_metrics(plain.targets)
  for split in ('train', 'validation'):
    (found,) = examples.open_split(name, LENGTHS, split)
    assert len(found) == 1 and found.predict_metrics(found.targets)


def test_bad_input_is_refused(name):
  seqio.MixtureRegistry.add('low_mixture', [name], default_rate=1)
  for given, options, message in (
    ('low_mixture', {}, 'is a mixture: .*low_numbers'),
    ('unheard_of', {}, 'not registered'),
    (name, {'seed': 'x'}, "LOW_DATA_SEED is 'x'"),
    (name, {'train': 0}, 'LOW_DATA_TRAIN is 0'),
    (name, {'test_split': 'test'}, "'test'.*'dev', 'dev2', 'train'"),
    (name, {'train': 55}, 'has 60 examples and 65 are'),
  ):
    with pytest.raises(errors.UserError, match=message):
      drawn(given, **options)


@pytest.fixture
def pairs(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  lines = [json.dumps({'inputs': f'i{n}', 'targets': 't'}) for n in range(400)]
  path.write_text('\n'.join(lines))
  settings = tmp_path / 'settings.gin'
  settings.write_text(
    f"PAIRS = '{path}'\nLOW_DATA_SEED = 2022\nBATCH_SIZE = 8\n"
    "MODEL_DIR = 'x'\nTRAIN_STEPS = 3\nINITIAL_CHECKPOINT_PATH = 'x'\n"
    "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 4}\n"
  )
  return settings


def files(variant, settings):
  return [
    'gin/models/tiny.gin',
    f'gin/variants/{variant}.gin',
    'gin/data/pairs.gin',
    'gin/runs/low_data.gin',
    str(settings),
  ]


def first_batches(files, bindings=()):
  gin.clear_config()
  gin_utils.parse(files, bindings)
  with gin.config_scope('train'):
    reader = gin.get_configurable(config.DatasetConfig)().open()
  return [next(reader)['encoder_input_tokens'].tolist() for _ in range(4)]


def test_one_seed_draws_alike_for_all_variants(pairs):
  """As the gin files have it, up to the order of the batches."""
  found = first_batches(files('gelu', pairs))
  assert first_batches(files('rational', pairs)) == found
  assert first_batches(files('gelu', pairs), ['LOW_DATA_SEED=3']) != found


def test_a_draw_never_changes(pairs):
  """In no process and by no version: these are the examples of a seed."""
  path = pairs.with_name('pairs.jsonl')
  whole = tasks.text_to_text(corpora.pairs(path), vocabularies.byte())
  name = low_data.task(whole, 2022)
  (found,) = examples.open_split(name, {'inputs': 8, 'targets': 4}, 'train')
  assert len(found) == 100
  assert found.inputs[:6] == ['i129', 'i136', 'i290', 'i5', 'i90', 'i252']


def rate_of(parameter):
  """The schedule that a parameter of the gin files is bound to."""
  return gin.query_parameter(parameter).scoped_configurable_fn()


def test_both_groups_fall_in_a_line_from_the_first_step():
  gin_utils.parse(files('rational', '')[:-1])
  weights = rate_of('programs.OptimizationConfig.learning_rate')
  coefficients = rate_of('optimizer.coefficient_adam.learning_rate')
  # The step counts the updates before this one.
  for step, left in ((0, 1.0), (60, 0.5), (119, 1 / 120), (120, 0.0)):
    assert weights(step) == pytest.approx(1e-3 * left, abs=1e-9)
    assert coefficients(step) == pytest.approx(5e-4 * left, abs=1e-9)


def test_raft_s_sweep_is_its_protocol():
  gin_utils.parse(['gin/sweeps/raft_low_data.gin'])
  runs = sweeps.plan(gin_utils.configured(sweeps.Sweep)(), ROOT / 'gin')
  stages = ('full', 'fixed', 'coefficients', 'bitfit', 'bitfit_coefficients')
  found = {}
  for run in runs:
    stage, task, *_ = run.name.split('/')
    if stage in stages:
      found.setdefault((stage, task), []).append(run)
  assert len(found) == 5 * 8
  for (_, task), group in found.items():
    arguments = command_line.rewrite_arguments(group[0].arguments)
    given = [
      [a.removeprefix(flag) for a in arguments if a.startswith(flag)]
      for flag in ('--gin_file=', '--gin_bindings=')
    ]
    gin.clear_config()
    gin_utils.parse(*given)
    values = {
      name: gin_utils.macro(name)
      for name in ('BATCH_SIZE', 'TRAIN_STEPS', 'EVAL_PERIOD', 'LOW_DATA_TRAIN')
    }
    assert list(values.values()) == [32, 120, 4, 100]
    assert gin_utils.macro('TASK_FEATURE_LENGTHS')['inputs'] == 128
    both = ['validation', 'validation_mismatched']
    wanted = both if task == 'glue_mnli' else 'validation'
    assert gin_utils.macro('LOW_DATA_TEST') == wanted
  seeds = {run.name.rpartition('-')[2] for run in found['full', 'glue_cola']}
  assert len(seeds) == 10


# What trains, and what of that does not.
ARMS = {
  'FULL': ('', None),
  'COEFFICIENTS_FROZEN': ('', 'mlp/activation'),
  'COEFFICIENTS_AND_CLASSIFIER': ('mlp/activation|logits_dense', None),
  'BITFIT': ('norm/scale|rel_embedding|logits_dense', None),
  'BITFIT_AND_COEFFICIENTS': (
    'norm/scale|rel_embedding|logits_dense|mlp/activation',
    None,
  ),
}


def test_what_trains_in_an_arm(pairs):
  gin_utils.parse(files('rational', pairs))
  _, axes = parameters.shapes_and_axes(gin_utils.macro('MODEL'))
  names = set(traverse_util.flatten_dict(axes, sep='/'))
  for arm, (wanted, not_wanted) in ARMS.items():
    frozen = optimizer_lib.frozen_names(gin_utils.macro(arm), axes)
    trains = {n for n in names if any(x in n for x in wanted.split('|'))}
    trains = {n for n in trains if not_wanted is None or not_wanted not in n}
    assert names - frozen == trains, arm
    # Each kind of parameter is there.
    assert all(any(x in n for n in trains) for x in wanted.split('|'))
