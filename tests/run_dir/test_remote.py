"""A run whose folder is reached as a bucket is: no file is appended to.

A real bucket is not at hand; the local file system stands in, through the
same paths (`epath`) and the same copies.
"""

import os
import pathlib
import signal

import pytest
from small_run import Numbered, at_batch, losses, periods, run

from t5x_variants import errors, paths
from t5x_variants.run_dir import records

PERIODS = periods(log=1, eval=100, checkpoint=4)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """Any path counts as remote; no file is opened to append."""
  monkeypatch.setattr(paths, 'is_remote', lambda path: True)
  opened = pathlib.Path.open

  def checked(self, mode='r', *args, **options):
    if tmp_path in self.parents and 'a' in mode:
      raise OSError('objects cannot be appended to')
    return opened(self, mode, *args, **options)

  monkeypatch.setattr(pathlib.Path, 'open', checked)
  return tmp_path


def test_paths():
  assert paths.is_remote('gs://bucket/run') and not paths.is_remote('runs/a')
  assert os.fspath(paths.folder('gs://bucket/run')) == 'gs://bucket/run'
  assert paths.folder('runs/a') == pathlib.Path.cwd() / 'runs/a'


def test_a_run_is_resumed_from_a_bucket(bucket, tmp_path_factory):
  """Stopped and continued: all records, those before the stop too."""
  plain = tmp_path_factory.mktemp('plain')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(paths, 'is_remote', lambda path: False)
    expected = run(plain, 8, periods=PERIODS)
  terminate = at_batch(3, signal.SIGTERM)
  run(bucket / 'run', 8, Numbered(before_batch=terminate), periods=PERIODS)
  assert run(bucket / 'run', 8, periods=PERIODS) == expected
  assert list((bucket / 'run').glob('events.out.tfevents.*'))
  assert (bucket / 'run/model-info.txt').exists()


def test_records_are_there_when_a_checkpoint_is(bucket):
  writer = records.RunWriter(bucket)
  writer.write(1, 'train', {'loss': 1.0})
  assert not (bucket / 'metrics.jsonl').exists()
  writer.flush()
  assert [r['step'] for r in records.read(bucket)] == [1]
  writer.write(2, 'train', {'loss': 1.0})
  writer.close()
  again = records.RunWriter(bucket, first_step=1)
  assert [r['step'] for r in again.earlier] == [1, 2]
  again.close()
  assert sorted(losses(bucket)) == [1]


def test_a_bucket_that_cannot_be_written_to(monkeypatch, tmp_path):
  from t5x_variants.run_dir import layout

  class Denied(Exception):
    """As TensorFlow's: no OSError."""

  def deny(*unused, **options):
    raise Denied('403: no storage.objects.create')

  folder = tmp_path / 'run'
  monkeypatch.setattr(paths, 'folder', lambda path: folder)
  monkeypatch.setattr(pathlib.Path, 'touch', deny)
  with pytest.raises(errors.UserError, match=r'gs://b/r cannot .* 403'):
    layout.make_folder('gs://b/r')
