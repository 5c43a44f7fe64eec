"""tools/tpu/launch_tpu.sh: what it prints and refuses; the files around it.

What --print shows is compared word by word, and no gcloud is called then.
"""

import re
import shutil
import subprocess

import pytest
import stand_in_cloud
from stand_in_cloud import FLAGS, LAUNCHER, ROOT, SETTINGS

cloud = stand_in_cloud.cloud

# --- what is printed ---

TAIL = '--zone=us-west4-a --quiet'
TPUS = 'gcloud compute tpus'
LOOK = (
  f'{TPUS} queued-resources describe first '
  f"'--format=value(state.state,state.failedData.error.message)' {TAIL}"
)
NODE = f"{TPUS} tpu-vm describe first '--format=value(state)' {TAIL}"
SSH = f'{TPUS} tpu-vm ssh first --worker='
HOST = 'bash t5x_variants/tools/tpu/tpu_host.sh'


def create_line(kind, version, spot=' --spot'):
  return (
    f'{TPUS} queued-resources create first --node-id=first '
    f'--accelerator-type={kind} --runtime-version={version}{spot} --async '
    f'{TAIL}'
  )


def printed(cloud, *arguments, **settings):
  code, out, err = cloud.launch('--print', *arguments, **settings)
  assert (code, err) == (0, '')
  assert not cloud.read('calls'), 'a command was run'
  return re.sub(r'(ready|setup) \d+', r'\1 STAMP', out).splitlines()


@pytest.mark.parametrize(
  'accelerator, kind, version',
  [
    ('v5e-8', 'v5litepod-8', 'v2-alpha-tpuv5-lite'),
    ('v5litepod-256', 'v5litepod-256', 'v2-alpha-tpuv5-lite'),
    ('v5p-128', 'v5p-128', 'v2-alpha-tpuv5'),
    ('v6e-256', 'v6e-256', 'v2-alpha-tpuv6e'),
    ('v4-8', 'v4-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_create_prints_what_it_asks_for(cloud, accelerator, kind, version):
  assert printed(cloud, 'create', ACCELERATOR=accelerator) == [
    LOOK,
    create_line(kind, version),
    LOOK,
    NODE,
  ]


def test_settings_are_flags_too(cloud):
  _, line, *_ = printed(
    cloud,
    'create',
    '--accelerator=v6e-8',
    '--spot=0',
    '--runtime=v2-mine',
    '--project=somebodys',
  )
  assert line == (
    create_line('v6e-8', 'v2-mine', spot='') + ' --project=somebodys'
  )


def test_run_prints_all_from_nothing_to_the_end(cloud):
  assert printed(cloud, 'run', '--', *FLAGS) == [
    LOOK,
    create_line('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    LOOK,
    NODE,
    f"{SSH}all '--command={HOST} status' {TAIL}",
    f"{SSH}all '--command={HOST} ready STAMP' {TAIL}",
    'git ls-files -z | tar --null --files-from=- -czf t5x_variants.tgz',
    f'{TPUS} tpu-vm scp t5x_variants.tgz first: --worker=all {TAIL}',
    f"{SSH}all '--command=mkdir -p t5x_variants && "
    f'tar -xzf t5x_variants.tgz -C t5x_variants && {HOST} setup STAMP'
    f"' {TAIL}",
    f"{SSH}all '--command={HOST} start .venv/bin/python -m "
    't5x_variants.train --gin_file=gin/models/tiny.gin --gin.TRAIN_STEPS=20 '
    r""""--gin.MODEL_DIR='\''gs://pail/first'\''"' """ + TAIL,
    f"{SSH}0 '--command={HOST} follow +1' {TAIL}",
    f"{SSH}all '--command={HOST} status' {TAIL}",
  ]


def test_the_other_commands_print_theirs(cloud):
  assert printed(cloud, 'status') == [
    LOOK,
    NODE,
    f"{SSH}all '--command={HOST} status' {TAIL}",
  ]
  assert printed(cloud, 'logs')[2:] == [
    f"{SSH}0 '--command={HOST} follow 20' {TAIL}"
  ]
  assert printed(cloud, 'stop')[2:] == [
    f"{SSH}all '--command={HOST} stop' {TAIL}"
  ]
  assert printed(cloud, 'delete')[2:] == [
    f'{TPUS} queued-resources delete first --force --async {TAIL}'
  ]
  assert len(printed(cloud, 'setup')) == 5


def words_of(line):
  """As a shell reads them."""
  script = f'set -- {line}\nprintf "%s\\0" "$@"'
  return subprocess.check_output(['bash', '-c', script], text=True).split('\0')


def test_what_is_printed_can_be_typed(cloud):
  awkward = """--gin.X='a "b" $c `d` \\ e'"""
  lines = printed(cloud, 'run', '--', awkward)
  (line,) = (line for line in lines if ' start ' in line)
  (option,) = (w for w in words_of(line) if w.startswith('--command='))
  # What gcloud hands to the host's shell.
  words = words_of(option.removeprefix('--command='))
  assert awkward in words
  assert "--gin.MODEL_DIR='gs://pail/first'" in words


def test_help_is_for_newcomers(cloud):
  code, out, _ = cloud.launch('--help', NAME='')
  assert code == 0
  for word in ('create', 'delete', 'BUCKET', '--print', 'gcloud auth login'):
    assert word in out
  assert 'set -uo' not in out


# --- what is refused ---


@pytest.mark.parametrize(
  'arguments, settings, words',
  [
    ([], {}, 'Say what to do: create, setup'),
    (['crate'], {}, 'crate is no command'),
    (['create', 'run'], {}, 'One command at a time'),
    (['create', '--zon=a'], {}, '--zon is no setting: they are NAME, ZONE'),
    (['create', '--', '--x'], {}, 'Only run takes flags'),
    (['create'], {'NAME': '', 'ZONE': ''}, 'create needs NAME, ZONE'),
    (['create'], {'ACCELERATOR': ''}, 'create needs ACCELERATOR'),
    (['create'], {'NAME': 'My_TPU'}, "NAME is 'My_TPU'"),
    (['create'], {'ZONE': 'us-west4'}, "ZONE is 'us-west4'"),
    (['create'], {'ACCELERATOR': 'v9-8'}, "is 'v9-8'; it must be a generation"),
    (['create'], {'ACCELERATOR': 'v5e'}, "is 'v5e'; it must be a generation"),
    (['create'], {'ACCELERATOR': 'v5p-12'}, 'multiple of 8'),
    (['create'], {'ACCELERATOR': 'tpu7x-8'}, 'on GKE only'),
    (['create'], {'SPOT': 'yes'}, "SPOT is 'yes'; it must be 1 or 0"),
    (['create'], {'POLL': '0'}, "POLL is '0'"),
    (['run', '--', '--x'], {'BUCKET': ''}, 'run needs BUCKET'),
    (['run'], {}, 'run needs the flags of python -m t5x_variants.train'),
    (['run', '--', '--x'], {'MODULE': 'trian'}, 'no t5x_variants/trian.py'),
  ],
)
def test_slips_are_one_sentence(cloud, arguments, settings, words):
  code, out, err = cloud.launch(*arguments, **settings)
  assert (code, out) == (2, '')
  assert err.startswith('error: ') and words in err
  assert len(err.splitlines()) == 1
  assert not cloud.read('calls')


def test_without_gcloud_it_says_where_to_get_it(cloud, tmp_path):
  bare = tmp_path / 'bare'
  bare.mkdir()
  for name in ('bash', 'dirname', 'timeout', 'mktemp', 'rm'):
    (bare / name).symlink_to(shutil.which(name))
  found = subprocess.run(
    ['bash', LAUNCHER, 'create'],
    env=SETTINGS | {'PATH': str(bare)},
    capture_output=True,
    text=True,
  )
  assert found.returncode == 2
  assert 'no gcloud on this machine' in found.stderr
  assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  'verb, said, words',
  [
    (
      'describe',
      'You do not currently have an active account selected.',
      'gcloud is not logged in',
    ),
    (
      'create',
      "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' exceeded",
      'Quota does not allow spot v5e-16 in us-west4-a',
    ),
    (
      'create',
      'Cloud TPU API has not been used in project 1 before',
      'gcloud services enable tpu.googleapis.com',
    ),
    (
      'create',
      'PERMISSION_DENIED: tpu.nodes.create',
      'This account may not do that',
    ),
    (
      'create',
      'INVALID_ARGUMENT: no v5litepod-16 in this zone',
      'Google Cloud refuses spot v5e-16 in us-west4-a: (gcloud.compute.tpus) '
      'INVALID_ARGUMENT: no v5litepod-16',
    ),
    (
      'describe',
      'The required property [project] is not currently set.',
      'set PROJECT',
    ),
  ],
)
def test_what_trying_again_does_not_mend_ends_at_once(cloud, verb, said, words):
  cloud.plan(verb, f'fail "{said}"')
  code, _, err = cloud.launch('create')
  assert code == 1
  last = err.splitlines()[-1]
  assert last.startswith('error: ') and words in last
  assert len(cloud.calls(f'queued-resources {verb}')) == 1


def test_quota_that_only_shows_later_is_said(cloud):
  cloud.plan('describe', ':', r"printf 'FAILED\tQuota exceeded\n'; exit 0")
  code, _, err = cloud.launch('create')
  assert code == 1
  assert 'Quota does not allow this slice: Quota exceeded' in err


# --- the files ---


def test_shellcheck_has_nothing_to_say():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not here')
  files = sorted(ROOT.glob('tools/tpu/*.sh'))
  subprocess.run(['shellcheck', '-x', *files], cwd=ROOT, check=True)


def test_no_project_and_no_secret_is_in_the_tools():
  found = []
  for path in [*ROOT.glob('tools/**/*.sh'), *ROOT.glob('docs/*.md')]:
    text = path.read_text(encoding='utf-8')
    found += re.findall(r'--project[= ]["\']?[a-z][-a-z0-9]{5,}', text)
    found += re.findall(r'\w+@[-\w.]*gserviceaccount|PRIVATE KEY|AIza', text)
  assert not found


@pytest.mark.parametrize('page', ['README.md', 'docs/tpu.md'])
def test_the_files_that_the_pages_name_are_there(page):
  text = (ROOT / page).read_text(encoding='utf-8')
  named = set(re.findall(r'--gin_file=(\S+?[.]gin)\b', text))
  named |= set(re.findall(r'\btools/[\w/]+[.]\w+', text))
  assert 'tools/tpu/launch_tpu.sh' in named
  missing = [name for name in named if not (ROOT / name).exists()]
  # The README's example of a variant of one's own is not there yet.
  assert not [name for name in missing if 'softsign' not in name]


def test_the_pages_command_is_one_that_prints(cloud):
  """The README's ten lines, as they stand there."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  (block,) = re.findall(
    r'^bash tools/tpu/launch_tpu.sh run (-- (?:.*\\\n)*.*)', text, re.M
  )
  flags = words_of(block)[:-1]
  lines = printed(cloud, 'run', *flags, ACCELERATOR='v5e-8', BUCKET='pail')
  start = next(line for line in lines if ' start ' in line)
  for flag in flags[1:]:
    assert flag in start
