"""launch_tpu.sh copies what git tracks to the hosts, and nothing else."""

import shutil
import subprocess
import tarfile

import pytest
import stand_in_cloud
from stand_in_cloud import ROOT

cloud = stand_in_cloud.cloud
SECRETS = ('.env', 'key.json', 'gin/mine.gin', 'tools/.netrc')


@pytest.fixture
def checkout(cloud, tmp_path):
  """A small checkout with files that nobody told git of; the slice is there."""
  folder = tmp_path / 'checkout'
  for name in ('tools/tpu', 'gin', 't5x_variants'):
    (folder / name).mkdir(parents=True)
  for path in ROOT.glob('tools/tpu/*.sh'):
    shutil.copy(path, folder / 'tools/tpu')
  for name in ('setup.py', 'README.md', 't5x_variants/train.py'):
    shutil.copy(ROOT / name, folder / name)
  (folder / 'gin/known.gin').write_text('X = 1\n')
  (folder / '.gitignore').write_text('ignored\n')
  git(folder, 'init', '--quiet')
  git(folder, 'add', '.')
  for name in (*SECRETS, 'ignored'):
    (folder / name).write_text('secret')
  cloud.launcher = folder / 'tools/tpu/launch_tpu.sh'
  assert cloud.launch('create')[0] == 0
  return folder


def git(folder, *arguments):
  subprocess.run(['git', '-C', folder, *arguments], check=True)


def copied(cloud, host='host0'):
  with tarfile.open(cloud.folder / host / 't5x_variants.tgz') as archive:
    return set(archive.getnames())


def test_only_what_git_tracks_is_copied_and_the_rest_is_named(cloud, checkout):
  code, _, err = cloud.launch('setup')
  assert code == 0, err
  tracked = subprocess.check_output(
    ['git', '-C', checkout, 'ls-files'], text=True
  ).split()
  assert copied(cloud) == copied(cloud, 'host1') == set(tracked)
  assert not {*SECRETS, 'ignored'} & set(tracked)
  # What is left out is named; what git was told to ignore is not.
  assert 'Not copied, because git does not track them' in err
  for name in SECRETS:
    assert f'  {name}\n' in err
  assert 'ignored' not in err


def test_a_tracked_file_that_was_deleted_is_no_error(cloud, checkout):
  (checkout / 'gin/known.gin').unlink()
  code, _, err = cloud.launch('setup')
  assert code == 0, err
  assert 'gin/known.gin' not in copied(cloud)


def test_without_git_only_the_parts_that_hosts_run_are_copied(cloud, checkout):
  shutil.rmtree(checkout / '.git')
  code, _, err = cloud.launch('setup')
  assert code == 0, err
  found = copied(cloud)
  assert {'setup.py', 'tools/tpu/tpu_host.sh', 'gin/known.gin'} <= found
  assert not found & {'.env', 'key.json', 'tools/.netrc', 'ignored'}


def test_a_gin_file_that_the_hosts_would_lack_is_refused(cloud, checkout):
  run = ('run', '--', '--gin_file=gin/known.gin', '--gin_file=gin/mine.gin')
  calls = len(cloud.read('calls'))
  code, _, err = cloud.launch(*run)
  assert code == 2
  assert err == (
    'error: --gin_file=gin/mine.gin would not be on the hosts: only files that '
    'git tracks are copied. Run git add gin/mine.gin, then the same command '
    'again.\n'
  )
  assert len(cloud.read('calls')) == calls, 'nothing was asked for'
  git(checkout, 'add', 'gin/mine.gin')
  assert cloud.launch('--print', *run)[0] == 0
