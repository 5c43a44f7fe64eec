"""What is saved stays whole; what is not whole is said and stepped over."""

import os
import pathlib
import resource
import shutil

import pytest
from small_run import Numbered, losses, run

from t5x_variants import errors, training_loop

# tensorstore answers a failed read or write after orbax has closed the event
# loop that asked, once for each array, and orbax leaves what it had not begun.
pytestmark = [
  pytest.mark.filterwarnings(
    'ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'
  ),
  pytest.mark.filterwarnings('ignore:coroutine .* was never awaited'),
]

PERIODS = training_loop.Periods(log=1, eval=100, checkpoint=2)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run of six steps with checkpoints of 2, 4 and 6."""
  folder = tmp_path_factory.mktemp('saved')
  run(folder, 6, periods=PERIODS)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def files_of(step):
  return sorted(p for p in step.rglob('*') if p.is_file() and p.stat().st_size)


def test_any_truncated_file_of_the_newest_falls_back(copy, caplog):
  """Each file of a step in turn; the one before serves, and it is said."""
  newest = copy / 'checkpoints/6'
  whole = copy.parent / 'whole'
  shutil.copytree(newest, whole)
  needed = [
    path.relative_to(newest)
    for path in files_of(newest)
    # Files that say nothing about the values: losing one costs nothing.
    if path.name not in ('commit_success.txt', '_CHECKPOINT_METADATA')
  ]
  fell_back = []
  for path in needed:
    caplog.clear()
    broken = newest / path
    os.truncate(broken, broken.stat().st_size // 2)
    dataset = Numbered()
    run(copy, 6, dataset, periods=PERIODS)
    if dataset.seen:
      fell_back.append(path)
      assert len(dataset.seen) == 2  # Steps 5 and 6 once more.
      assert 'Checkpoint of step 6 cannot be read' in caplog.text
      shutil.rmtree(copy / 'checkpoints/unreadable-6')
    shutil.rmtree(newest)
    shutil.copytree(whole, newest)
    assert losses(copy).keys() == {1, 2, 3, 4, 5, 6}
  # All that holds values: the arrays (what lies in ocdbt.process_0 has been
  # merged into state/d) and the position in the data.
  values = {p for p in needed if str(p).startswith(('state/d/', 'data/'))}
  assert len(values) >= 2 and values <= set(fell_back)


def test_all_broken_is_an_error_and_nothing_is_deleted(copy):
  for step in (2, 4, 6):
    for path in (copy / f'checkpoints/{step}/data').iterdir():
      os.truncate(path, 0)
  with pytest.raises(errors.UserError, match='No checkpoint .* can be read'):
    run(copy, 8, periods=PERIODS)
  assert sorted(p.name for p in (copy / 'checkpoints').iterdir()) == [
    'unreadable-2',
    'unreadable-4',
    'unreadable-6',
  ]


def test_a_checkpoint_of_another_model_names_what_differs(copy):
  with pytest.raises(errors.UserError, match='another model') as error:
    run(copy, 8, activation='polynorm', periods=PERIODS)
  text = str(error.value)
  assert 'decoder/layers_0/mlp/activation/weight: absent' in text
  assert 'numerator: [6] in the checkpoint, absent' in text
  # Nothing was moved or overwritten.
  assert (copy / 'checkpoints/6').is_dir()
  assert losses(copy).keys() == {1, 2, 3, 4, 5, 6}


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_step(copy):
  """A limit on the size of files stands in for a disk that is full."""

  def fill_up(number):
    if number == 8:
      soft = resource.getrlimit(resource.RLIMIT_FSIZE)
      limits.append(soft)
      resource.setrlimit(resource.RLIMIT_FSIZE, (4096, soft[1]))

  limits = []
  try:
    with pytest.raises(errors.UserError, match='Cannot write') as error:
      run(copy, 20, Numbered(before_batch=fill_up), periods=PERIODS)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits[0])
  assert 'last complete checkpoint is intact' in str(error.value)
  dataset = Numbered()
  run(copy, 10, dataset, periods=PERIODS)
  assert dataset.seen[0][0] in (6 * 8, 7 * 8, 8 * 8)
  assert sorted(losses(copy)) == list(range(1, 11))


def test_keep_policy(tmp_path):
  run(tmp_path, 12, periods=PERIODS, max_to_keep=2, keep_period=4)
  steps = {int(p.name) for p in (tmp_path / 'checkpoints').iterdir()}
  assert steps == {4, 8, 10, 12}


def test_a_half_written_step_is_not_taken_for_a_checkpoint(copy):
  """What a process leaves that died while writing."""
  source = copy / 'checkpoints/6'
  half = pathlib.Path(f'{copy}/checkpoints/8.orbax-checkpoint-tmp')
  shutil.copytree(source, half)
  dataset = Numbered()
  run(copy, 8, dataset, periods=PERIODS)
  assert dataset.seen[0][0] == 6 * 8
