"""The loop as a whole: what is written, what survives, what is refused."""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import time

import forking
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import (
  VOCAB,
  Killed,
  Numbered,
  Rows,
  at_batch,
  losses,
  mesh_of,
  periods,
  run,
)

from t5x_variants import errors
from t5x_variants.distributed import preemption
from t5x_variants.run_dir import records
from t5x_variants.training import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """A run of 12 steps that nothing disturbs, and what it read."""
  folder, dataset = tmp_path_factory.mktemp('unbroken'), Numbered()
  return folder, run(folder, 12, dataset), dataset.seen


@pytest.mark.parametrize('step', [5, 11])
def test_killed_and_continued_is_as_if_never_killed(unbroken, tmp_path, step):
  _, expected, seen = unbroken
  with pytest.raises(Killed):
    run(tmp_path, 12, Numbered(before_batch=at_batch(step)))
  again = Numbered()
  assert run(tmp_path, 12, again) == expected
  saved = (step - 1) // 4 * 4
  # Nothing twice, nothing skipped, from the checkpoint on.
  assert again.seen == seen[saved:]
  assert sorted(losses(tmp_path, 'eval')) == [0, 5, 10, 12]
  # The clock of goodput began with the first start, and never stopped.
  found = records.read(tmp_path, 'train')
  began = [r['time'] - r['wall_seconds'] for r in found]
  assert max(began) < found[0]['time']
  assert all(0 < r['goodput'] < 1 for r in found)


def test_an_unlucky_log_period_does_not_show_after_a_restart(tmp_path):
  """Checkpoints fall between two records, whose sums go with them."""
  often = periods(log=3, eval=100, checkpoint=4)
  expected = run(tmp_path / 'a', 11, periods=often)
  with pytest.raises(Killed):
    run(tmp_path / 'b', 11, Numbered(before_batch=at_batch(6)), periods=often)
  assert run(tmp_path / 'b', 11, periods=often) == expected
  assert sorted(expected) == [3, 6, 9, 11]


def test_a_signal_saves_and_the_run_goes_on_from_there(unbroken, tmp_path):
  _, expected, seen = unbroken
  terminate = at_batch(6, signal.SIGTERM)
  first, second = Numbered(before_batch=terminate), Numbered()
  run(tmp_path, 12, first)
  assert len(first.seen) < 12
  assert run(tmp_path, 12, second) == expected
  assert first.seen + second.seen == seen


def test_a_second_signal_is_not_held_back(request):
  # A shell starts what runs in the background with SIGINT ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  with preemption.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop and stop.signal_name == 'SIGINT'
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_continues_on_another_mesh(unbroken, tmp_path):
  folder, expected, _ = unbroken
  shutil.copytree(folder, tmp_path / 'run')
  for step in (8, 12):
    shutil.rmtree(tmp_path / f'run/checkpoints/{step}')
  found = run(tmp_path / 'run', 12, mesh=mesh_of(4, 2))
  for step in range(5, 13):
    # The loss; a norm's sum over shards has rounding of its own.
    np.testing.assert_allclose(found[step][0], expected[step][0], rtol=1e-5)


def test_stops_at_a_loss_that_is_not_finite(tmp_path):
  def poisoned(step):
    return jax.numpy.where(step == 5, jax.numpy.nan, 0.01)

  with pytest.raises(errors.UserError, match='not finite') as error:
    run(
      tmp_path, 12, learning_rate=poisoned, optimizer=lambda _, r: optax.sgd(r)
    )
  assert 'checkpoint of step 4 is the last one and is kept' in str(error.value)
  assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
  numbers = [value for row in losses(tmp_path).values() for value in row[:4]]
  assert all(map(math.isfinite, numbers))
  saved = checkpoints.Checkpoints(
    tmp_path / 'checkpoints', checkpoints.CheckpointConfig()
  )
  assert saved.latest_step() == 4
  saved.close()


def poisoned_at(wanted):
  """An optimizer whose update of one step has a NaN; the loss has none yet."""

  def rule(axes, learning_rate):
    def update(updates, count, params=None):
      bad = jnp.where(count == wanted - 1, jnp.nan, 0.0)
      return jax.tree.map(lambda u: u * 0.01 + bad, updates), count + 1

    del axes, learning_rate
    return optax.GradientTransformation(
      lambda params: jnp.zeros((), jnp.int32), update
    )

  return rule


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  """The loss of step 8 is that of before its update."""
  with pytest.raises(errors.UserError, match='update of step 8 made') as error:
    run(tmp_path, 12, optimizer=poisoned_at(8))
  assert 'checkpoint of step 4 is the last one' in str(error.value)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'4'}
  # Soon after a restore the older steps are named.
  run(tmp_path, 7, optimizer=poisoned_at(8))
  with pytest.raises(errors.UserError, match='update of step 8') as error:
    run(tmp_path, 12, optimizer=poisoned_at(8))
  assert 'move 7 away to go on from step 4' in str(error.value)


def test_loss_falls_and_the_held_out_batches_stay_the_same(tmp_path):
  run(tmp_path, 60, periods=periods(eval=20, checkpoint=100))
  held_out = losses(tmp_path, 'eval')
  assert sorted(held_out) == [0, 20, 40, 60]
  assert held_out[60][0] < held_out[0][0] - 0.2


def test_an_ended_run_does_nothing_more(unbroken, tmp_path, capsys):
  folder, expected, _ = unbroken
  shutil.copytree(folder, tmp_path / 'run')
  assert run(tmp_path / 'run', 12) == expected
  assert 'Nothing to do' in capsys.readouterr().err


def test_what_a_run_directory_holds(unbroken):
  folder, _, _ = unbroken
  info = (folder / 'model-info.txt').read_text()
  assert 'encoder/layers_0/mlp/activation/numerator' in info
  assert '20 of them coefficients' in info
  checkpoints = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert checkpoints == {'4', '8', '12'}
  assert list(folder.glob('events.out.tfevents.*'))
  record = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-2])
  names = 'step split time loss z_loss accuracy learning_rate gradient_norm '
  names += 'tokens_per_second seconds_per_step data_wait goodput wall_seconds '
  names += 'tokens_per_second_per_chip'
  assert set(names.split()) <= set(record)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'steps': '5'}, "TRAIN_STEPS is '5'; it must be a whole number"),
    ({'model_dir': 500}, 'MODEL_DIR is 500; it must be the path'),
    ({'num_microbatches': 3}, 'must be a multiple of 3'),
    ({'dataset': Numbered(batch_size=6), 'mesh': (4, 1)}, 'multiple of 4'),
    (
      {'model_dir': '/dev/null/run'},
      'MODEL_DIR /dev/null/run cannot be written',
    ),
  ],
)
def test_refuses(tmp_path, options, words):
  options = {'model_dir': tmp_path, 'steps': 2} | options
  if 'mesh' in options:
    options['mesh'] = mesh_of(*options['mesh'])
  with pytest.raises(errors.UserError, match=words):
    run(**options)


def test_refuses_a_vocabulary_larger_than_the_model(tmp_path, monkeypatch):
  monkeypatch.setattr(Rows, 'vocab_size', VOCAB + 1)
  with pytest.raises(errors.UserError, match=r'65 ids.*VOCAB_SIZE 64'):
    run(tmp_path, 2)


STEPS = 60


def start(model_dir, output):
  """The real command, on the embedded corpus, with a model that is small."""
  files = ('models/tiny', 'variants/rational', 'data/embedded', 'runs/pretrain')
  return forking.start(
    [
      't5x_variants.train',
      *(f'--gin_file=gin/{file}.gin' for file in files),
      f"--gin.MODEL_DIR='{model_dir}'",
      f'--gin.TRAIN_STEPS={STEPS}',
      '--gin.BATCH_SIZE=8',
      '--gin.LOG_PERIOD=1',
      '--gin.CHECKPOINT_PERIOD=7',
      '--gin.EVAL_STEPS=1',
      '--gin.network.T5Config.emb_dim=16',
      '--gin.network.T5Config.num_encoder_layers=1',
      '--gin.network.T5Config.num_decoder_layers=1',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
    ],
    output=output,
    folder=ROOT,
  )


def signal_at(process, output, step, number=None):
  """Sends a signal when the line of a step shows; the exit code, the text."""
  while process.is_alive() and f' {step}/{STEPS}' not in output.read_text():
    time.sleep(0.01)
  if number is not None:
    os.kill(process.pid, number)
  process.join(200)
  return process.exitcode, output.read_text()


@pytest.mark.slow
def test_sigkill_and_sigterm_of_the_real_command(tmp_path):
  """As tools/torture.py has it of prepared data, here of seqio's pipeline."""
  output = tmp_path / 'output'
  output.touch()

  def go(name, step=STEPS, number=None):
    output.write_text('')
    return signal_at(start(tmp_path / name, output), output, step, number)

  code, text = go('unbroken')
  assert code == 0, text
  expected = losses(tmp_path / 'unbroken')
  assert sorted(expected) == list(range(1, STEPS + 1))
  kill, term = random.randint(10, 20), random.randint(25, 35)
  assert go('broken', kill, signal.SIGKILL)[0] == -signal.SIGKILL
  assert go('broken', term, signal.SIGTERM)[0] == 0
  code, text = go('broken')
  assert code == 0 and 'Going on from the checkpoint' in text
  found = losses(tmp_path / 'broken')
  assert found == expected, f'killed at {kill}, terminated at {term}'
  held_out = losses(tmp_path / 'unbroken', 'eval')
  assert losses(tmp_path / 'broken', 'eval') == held_out
