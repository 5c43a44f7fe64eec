"""What is saved stays whole; what is not whole is said and stepped over."""

import errno
import os
import pathlib
import random
import resource
import shutil

import pytest
from small_run import Numbered, losses, periods, run

from t5x_variants import errors
from t5x_variants.run_dir import checksums
from t5x_variants.training import checkpoints, optimizer

# tensorstore answers a failed read or write after orbax has closed the event
# loop that asked, once for each array, and orbax leaves what it had not begun.
pytestmark = [
  pytest.mark.filterwarnings(
    'ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'
  ),
  pytest.mark.filterwarnings('ignore:coroutine .* was never awaited'),
]

PERIODS = periods(log=1, eval=100, checkpoint=2)


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
  # Of the checked files one stands for all: see the test of flipped bits.
  needed = [next(newest.glob('state/d/*')).relative_to(newest)]
  needed.append(pathlib.Path('checksums/checksums.json'))
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
      assert 'The checkpoint of step 6 is damaged' in caplog.text
      shutil.rmtree(copy / 'checkpoints/unreadable-6')
    shutil.rmtree(newest)
    shutil.copytree(whole, newest)
    assert losses(copy).keys() == {1, 2, 3, 4, 5, 6}
  assert fell_back == needed


def test_no_flipped_bit_is_missed(saved):
  """Of every file that orbax or the data position has written in a step."""
  step = saved / 'checkpoints/6'
  assert checkpoints.damage(step) == ''
  draw = random.Random(0)
  own = [step / 'checksums/commit_success.txt']  # Orbax's last word.
  files = [p for p in files_of(step) if p.parent != step and p not in own]
  assert len(files) >= 8
  for number in range(200):
    path = files[number % len(files)]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    assert checkpoints.damage(step), path
    path.write_bytes(whole)
  assert checkpoints.damage(step) == ''


def test_a_missing_file_of_checksums_is_damage(saved):
  step = saved / 'checkpoints/6'
  file = step / 'checksums' / checksums.NAME
  whole = file.read_bytes()
  file.unlink()
  assert checkpoints.damage(step) == f'{checksums.NAME} is missing'
  file.write_bytes(whole)
  assert checkpoints.damage(step) == ''


@pytest.mark.parametrize('name', ['_CHECKPOINT_METADATA', 'commit_success.txt'])
def test_files_that_hold_no_value_can_be_damaged(copy, name):
  """Orbax writes them when the step has its name; the values are the same."""
  path = copy / 'checkpoints/6' / name
  path.write_bytes(b'\xff' + path.read_bytes()[:-1])
  before = losses(copy)
  assert run(copy, 7, periods=PERIODS).items() > before.items()


def test_all_damaged_is_an_error_each_time_and_nothing_is_deleted(copy):
  # A step that was set aside before has the name.
  (copy / 'checkpoints/unreadable-6').mkdir()
  for step in (2, 4, 6):
    for path in (copy / f'checkpoints/{step}/data').iterdir():
      os.truncate(path, 0)
  records = (copy / 'metrics.jsonl').read_bytes()
  for _ in range(2):
    with pytest.raises(errors.UserError, match='all are damaged'):
      run(copy, 8, periods=PERIODS)
    assert sorted(p.name for p in (copy / 'checkpoints').iterdir()) == [
      'unreadable-2',
      'unreadable-4',
      'unreadable-6',
      'unreadable-6-2',
    ]
    assert (copy / 'metrics.jsonl').read_bytes() == records


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOMEM])
def test_what_cannot_be_read_for_now_is_left_as_it_is(
  copy, monkeypatch, number
):
  """A mount that is gone or a lack of memory is no proof of damage."""

  def fail(path):
    raise OSError(number, os.strerror(number), str(path))

  monkeypatch.setattr(checksums, 'of_file', fail)
  with pytest.raises(errors.UserError, match=r'step 6 .* cannot be read') as e:
    run(copy, 8, periods=PERIODS)
  assert os.strerror(number) in str(e.value)
  assert {p.name for p in (copy / 'checkpoints').iterdir()} == {'2', '4', '6'}
  assert losses(copy).keys() == {1, 2, 3, 4, 5, 6}


def test_a_step_without_checksums_that_fails_is_left_to_a_person(copy):
  """As versions before the checksums wrote it."""
  shutil.rmtree(copy / 'checkpoints/6/checksums')
  for path in (copy / 'checkpoints/6/state/d').iterdir():
    os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(errors.UserError, match='nothing proves'):
    run(copy, 8, periods=PERIODS)
  assert (copy / 'checkpoints/6').is_dir()


@pytest.mark.parametrize('frozen', [None, 'token_embedder'])
def test_another_optimizer_is_refused_and_nothing_is_lost(copy, frozen):
  """COEFFICIENT_OPTIMIZER = None, and FROZEN."""

  def rule(axes, learning_rate):
    return optimizer.adafactor(axes, learning_rate, frozen=frozen)

  before = {p: p.read_bytes() for p in copy.rglob('*') if p.is_file()}
  with pytest.raises(errors.UserError, match='another optimizer') as error:
    run(copy, 8, periods=PERIODS, optimizer=rule)
  assert 'COEFFICIENT_OPTIMIZER' in str(error.value)
  after = {p: p.read_bytes() for p in copy.rglob('*') if p.is_file()}
  assert after == before


def test_records_without_checkpoints_are_not_overwritten(copy):
  shutil.rmtree(copy / 'checkpoints')
  records = (copy / 'metrics.jsonl').read_bytes()
  with pytest.raises(errors.UserError, match='records up to step 6 and no'):
    run(copy, 8, periods=PERIODS)
  assert (copy / 'metrics.jsonl').read_bytes() == records


@pytest.mark.parametrize('period', [50, 3])  # The first one may have failed.
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(
  copy, capsys, period
):
  shutil.rmtree(copy / 'checkpoints')
  before = losses(copy)
  late = periods(log=1, eval=100, checkpoint=period)
  assert run(copy, 6, periods=late) == before
  assert 'before its first checkpoint' in capsys.readouterr().err


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
    with pytest.raises(errors.UserError, match=r'annot .*wr') as error:
      run(copy, 20, Numbered(before_batch=fill_up), periods=PERIODS)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits[0])
  assert 'intact' in str(error.value)
  dataset = Numbered()
  run(copy, 10, dataset, periods=PERIODS)
  assert dataset.seen[0][0] in (6 * 8, 7 * 8, 8 * 8)
  assert sorted(losses(copy)) == list(range(1, 11))


def test_keep_policy(tmp_path):
  run(tmp_path, 12, periods=PERIODS, max_to_keep=2, keep_period=4)
  steps = {int(p.name) for p in (tmp_path / 'checkpoints').iterdir()}
  assert steps == {4, 8, 10, 12}
