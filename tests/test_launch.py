"""tools/launch_tpu.sh against a cloud that fails, hangs, preempts, recovers.

tests/stand_in_gcloud.sh is that cloud. What --print shows is compared word by
word, and no gcloud is called then.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCHER = ROOT / 'tools' / 'launch_tpu.sh'
SETTINGS = {
  'NAME': 'first',
  'ZONE': 'us-west4-a',
  'ACCELERATOR': 'v5e-16',
  'BUCKET': 'pail',
}
FLAGS = ('--gin_file=gin/models/tiny.gin', '--gin.TRAIN_STEPS=20')


class Cloud:
  """The stand-in's state, and the launcher run against it."""

  def __init__(self, folder):
    self.folder = folder / 'cloud'
    self.processes = []
    (self.folder / 'bucket').mkdir(parents=True)
    self.write('last', '20')
    self.bin = folder / 'bin'
    self.bin.mkdir()
    for name in ('gcloud', 'uv'):
      shutil.copy(ROOT / f'tests/stand_in_{name}.sh', self.bin / name)
      (self.bin / name).chmod(0o755)

  def write(self, name, text):
    (self.folder / name).write_text(text + '\n')

  def read(self, name):
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def plan(self, verb, *lines):
    self.write(f'plan-{verb}', '\n'.join(lines))

  def calls(self, *words):
    """The calls in which all words stand."""
    return [
      call for call in self.read('calls') if all(word in call for word in words)
    ]

  def start(self, *arguments, **settings):
    drop = {'PROJECT', 'SPOT', 'RUNTIME', 'MODULE'}
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env |= SETTINGS | {'POLL': '0.1', 'CALL_LIMIT': '20'} | settings
    env |= {'CLOUD': str(self.folder), 'PATH': f'{self.bin}:{env["PATH"]}'}
    process = subprocess.Popen(
      ['bash', LAUNCHER, *arguments],
      env={k: v for k, v in env.items() if v},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.processes.append(process)
    return process

  def launch(self, *arguments, **settings):
    """Exit status, stdout, stderr."""
    process = self.start(*arguments, **settings)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err

  def train(self, **settings):
    return self.launch('run', '--', *FLAGS, **settings)

  def wait_for(self, condition):
    for _ in range(600):
      if condition():
        return
      time.sleep(0.05)
    raise AssertionError(self.read('calls'))


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  for process in cloud.processes:
    process.kill()
    process.communicate()
  for path in cloud.folder.glob('host*/t5x_variants/.tpu_run/pid'):
    try:
      os.killpg(int(path.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass


# --- what is printed ---

TAIL = '--zone=us-west4-a --quiet'
TPUS = 'gcloud compute tpus'
LOOK = (
  f'{TPUS} queued-resources describe first '
  f"'--format=value(state.state,state.failedData.error.message)' {TAIL}"
)
NODE = f"{TPUS} tpu-vm describe first '--format=value(state)' {TAIL}"
SSH = f'{TPUS} tpu-vm ssh first --worker='
HOST = 'bash t5x_variants/tools/tpu_host.sh'


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
    'git ls-files -z --cached --others --exclude-standard | '
    'tar --null --files-from=- -czf t5x_variants.tgz',
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


# --- failures, hangs, recoveries ---


def test_a_slice_that_is_there_is_not_asked_for_again(cloud):
  assert cloud.launch('create')[0] == 0
  assert cloud.launch('create')[0] == 0
  assert len(cloud.calls('create first')) == 1


def test_no_capacity_is_asked_for_again(cloud):
  full = r"printf 'FAILED\tno more capacity in the zone\n'; exit 0"
  # Not there; failed twice, each time deleted and asked for again; given.
  cloud.plan('describe', ':', full, ':', full, ':')
  cloud.plan('create', ':', 'rm -f $CLOUD/queue', 'rm -f $CLOUD/queue')
  cloud.plan('delete', 'rm -f $CLOUD/queue; exit 0', 'exit 0')
  code, _, err = cloud.launch('create')
  assert code == 0, err
  assert err.count('no more capacity in the zone') == 2
  assert len(cloud.calls('delete first --force')) == 2


@pytest.mark.parametrize('state', ['SUSPENDED', 'FAILED'])
def test_what_an_earlier_slice_left_is_cleared_away(cloud, state):
  cloud.write('queue', state)
  assert cloud.launch('create')[0] == 0
  assert len(cloud.calls('delete first --force')) == 1
  assert cloud.read('node') == ['READY']


def test_a_request_the_network_lost_is_made_again(cloud):
  cloud.plan('create', 'fail "connection reset by peer"')
  code, _, err = cloud.launch('create')
  assert code == 0
  assert 'The request was not taken' in err and 'connection reset' in err


def test_a_call_that_hangs_is_given_up_and_made_again(cloud):
  cloud.plan('describe', 'sleep 1000')
  # Hung, but heard: it is there at the next look.
  cloud.plan('create', 'echo WAITING_FOR_RESOURCES >$CLOUD/queue; sleep 1000')
  code, _, err = cloud.launch('create', CALL_LIMIT='0.5')
  assert code == 0, err
  assert 'no answer in 0.5 seconds' in err


def test_a_cloud_that_only_hangs_ends_in_a_sentence(cloud):
  cloud.plan('describe', *['sleep 1000'] * 3)
  begun = time.monotonic()
  code, _, err = cloud.launch('create', CALL_LIMIT='0.3')
  assert code == 1 and time.monotonic() - begun < 30
  assert err.splitlines()[-1] == (
    'error: No state of the slice after 3 looks: gcloud fails: no answer in '
    '0.3 seconds.'
  )


def started(cloud):
  """The commands, by host, in the order of their starts."""
  return [line.split(' ', 1) for line in cloud.read('started')]


def test_a_run_from_nothing_to_its_end(cloud):
  code, out, err = cloud.train()
  assert code == 0, err
  lines = out.splitlines()
  assert lines[0] == 'going on from step 0' and lines[-1] == 'step 20'
  assert lines.count('step 20') == 1, 'the log of host 0 alone'
  # The same command on every host, quotes and all.
  hosts, commands = zip(*started(cloud), strict=True)
  assert sorted(hosts) == ['host0', 'host1']
  command = ' '.join(FLAGS) + " --gin.MODEL_DIR='gs://pail/first'"
  assert set(commands) == {f'-m t5x_variants.train {command}'}
  # The hosts have this checkout.
  there = cloud.folder / 'host1' / 't5x_variants'
  assert (there / 'setup.py').read_bytes() == (ROOT / 'setup.py').read_bytes()
  assert 'The run has ended well on all hosts.' in err
  # Its code is there already; it is started again, and status tells of it.
  assert cloud.train()[0] == 0
  assert len(cloud.calls('tpu-vm scp')) == 1
  code, out, _ = cloud.launch('status')
  assert code == 0 and out.splitlines()[0] == 'slice first: READY'
  assert out.count('state=ended code=0 going on from step 20') == 2


@pytest.mark.parametrize('how', ['queue', 'node'])
def test_a_preempted_slice_is_made_anew_and_the_run_goes_on(cloud, how):
  cloud.write('last', '40')
  # Connections to hosts that are gone hang rather than end.
  cloud.plan('follow', '(on_host $CLOUD/host0 "$command"); sleep 1000')
  gone = 'take_away; echo SUSPENDED >$CLOUD/queue'
  if how == 'node':
    gone = 'take_away; echo PREEMPTED >$CLOUD/node'
  process = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: int((cloud.read('bucket/step') or '0')[0]) >= 10)
  at = int(cloud.read('bucket/step')[0])
  cloud.plan('describe', gone)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert 'taken away' in err
  again = [line for line in out.splitlines() if line.startswith('going on')]
  assert again[0] == 'going on from step 0' and len(again) == 2
  assert int(again[1].split()[-1]) >= at
  assert cloud.read('bucket/step') == ['40']
  assert len(cloud.calls('create first')) == 2
  assert len({command for _, command in started(cloud)}) == 1
  assert len(started(cloud)) == 4


def test_a_host_told_to_stop_saves_and_the_run_goes_on(cloud):
  """As when a slice is about to be taken away, and then is not."""
  cloud.write('last', '40')
  process = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: int((cloud.read('bucket/step') or '0')[0]) >= 5)
  for host in ('host0', 'host1'):
    pid = cloud.read(f'{host}/t5x_variants/.tpu_run/pid')[0]
    os.killpg(int(pid), signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert 'saved step' in out and 'A host was told to stop' in err
  assert cloud.read('bucket/step') == ['40']


def test_a_run_that_was_refused_is_not_repeated(cloud):
  cloud.write('refuse', '')
  code, out, err = cloud.train()
  assert code == 2
  assert 'error: BATCH_SIZE is 3' in out
  assert err.splitlines()[-1].startswith('error: The run was refused;')
  assert len(started(cloud)) == 2


def test_a_run_that_crashes_is_repeated_three_times(cloud):
  cloud.write('crash', '')
  code, _, err = cloud.train()
  assert code == 1
  assert err.count('state=ended code=1 Killed.') == 6
  assert err.splitlines()[-1].startswith('error: The run failed 3 times')
  assert len(started(cloud)) == 6


def test_a_setup_that_fails_once_is_repeated(cloud):
  cloud.plan('scp', 'fail "lost connection"')
  code, _, err = cloud.train()
  assert code == 0, err
  assert 'failed 1 times at the copy of the checkout' in err
  assert 'lost connection' in err


def test_ctrl_c_leaves_the_run_alone_and_it_can_be_followed_again(cloud):
  cloud.write('last', '100000')
  process = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: cloud.calls('follow +1'))
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'The run goes on without this script' in err
  cloud.write('bucket/step', '0')
  cloud.wait_for(lambda: int(cloud.read('bucket/step')[0]) > 25)
  again = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: len(cloud.calls('follow 20')) == 1)
  assert len(started(cloud)) == 2, 'not started twice'
  cloud.write('last', '1')
  out, err = again.communicate(timeout=60)
  assert again.returncode == 0 and 'The run is going on' in err
  assert 'step 26\n' in out and 'step 1\n' not in out


def test_stop_ends_a_run_for_the_one_who_follows_it_too(cloud):
  cloud.write('last', '100000')
  process = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: cloud.calls('follow +1'))
  code, _, err = cloud.launch('run', '--', '--gin_file=other.gin')
  assert code == 2
  assert 'error: another run is on host' in err and 'tiny.gin' in err
  assert cloud.launch('stop')[0] == 0
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert 'saved step' in out and 'The run was ended by stop' in err
  assert len(started(cloud)) == 2


def test_stop_logs_and_delete(cloud):
  code, _, err = cloud.launch('stop')
  assert code == 1 and 'stop needs the slice first in us-west4-a' in err
  assert cloud.launch('delete')[2] == 'There is no slice first in us-west4-a.\n'
  cloud.write('last', '100000')
  process = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: cloud.calls('follow +1'))
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert cloud.launch('stop')[0] == 0
  code, out, _ = cloud.launch('logs')
  assert code == 0 and 'saved step' in out
  assert cloud.launch('status')[1].count('state=halted code=0 saved') == 2
  assert 'is given back' in cloud.launch('delete')[2]
  assert not list(cloud.folder.glob('host*')) and cloud.read('bucket/step')


# --- the files ---


def test_shellcheck_has_nothing_to_say():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not here')
  files = sorted((ROOT / 'tools').glob('*tpu*.sh'))
  subprocess.run(['shellcheck', '-x', *files], cwd=ROOT, check=True)


def test_no_project_and_no_secret_is_in_the_tools():
  found = []
  for path in [*ROOT.glob('tools/*.sh'), *ROOT.glob('docs/*.md')]:
    text = path.read_text(encoding='utf-8')
    found += re.findall(r'--project[= ]["\']?[a-z][-a-z0-9]{5,}', text)
    found += re.findall(r'\w+@[-\w.]*gserviceaccount|PRIVATE KEY|AIza', text)
  assert not found


def test_the_image_has_what_it_copies():
  lines = (ROOT / 'Dockerfile').read_text(encoding='utf-8').splitlines()
  copied = [
    name.rstrip('/')
    for line in lines
    if line.startswith('COPY ')
    for name in line.split()[1:-1]
  ]
  assert {'setup.py', 'gin', 't5x_variants'} <= set(copied)
  ignored = (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
  for name in copied:
    assert (ROOT / name).exists(), name
    assert f'!{name}' in ignored, name


@pytest.mark.parametrize('page', ['README.md', 'docs/tpu.md'])
def test_the_files_that_the_pages_name_are_there(page):
  text = (ROOT / page).read_text(encoding='utf-8')
  named = set(re.findall(r'--gin_file=(\S+?[.]gin)\b', text))
  named |= set(re.findall(r'\btools/\w+[.]\w+', text))
  assert 'tools/launch_tpu.sh' in named
  missing = [name for name in named if not (ROOT / name).exists()]
  # The README's example of a variant of one's own is not there yet.
  assert not [name for name in missing if 'softsign' not in name]


def test_the_pages_command_is_one_that_prints(cloud):
  """The README's ten lines, as they stand there."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  (block,) = re.findall(
    r'^bash tools/launch_tpu.sh run (-- (?:.*\\\n)*.*)', text, re.M
  )
  flags = words_of(block)[:-1]
  lines = printed(cloud, 'run', *flags, ACCELERATOR='v5e-8', BUCKET='pail')
  start = next(line for line in lines if ' start ' in line)
  for flag in flags[1:]:
    assert flag in start
