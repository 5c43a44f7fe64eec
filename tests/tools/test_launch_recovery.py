"""launch_tpu.sh against a cloud that fails, hangs, preempts, recovers."""

import os
import signal
import time

import pytest
import stand_in_cloud
from stand_in_cloud import FLAGS, ROOT

cloud = stand_in_cloud.cloud


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
  code, _, err = cloud.launch('create', CALL_LIMIT='3')
  assert code == 0, err
  assert 'no answer in 3 seconds' in err


def test_a_cloud_that_only_hangs_ends_in_a_sentence(cloud):
  cloud.plan('describe', *['sleep 1000'] * 3)
  begun = time.monotonic()
  code, _, err = cloud.launch('create', CALL_LIMIT='0.3')
  assert code == 1 and time.monotonic() - begun < 60
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
  out, err = process.communicate(timeout=200)
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
    pid, *_ = cloud.read(f'{host}/t5x_variants/.tpu_run/pid')[0].split()
    os.killpg(int(pid), signal.SIGTERM)
  out, err = process.communicate(timeout=200)
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
  out, err = process.communicate(timeout=200)
  assert process.returncode == 130
  assert 'The run goes on without this script' in err
  cloud.write('bucket/step', '0')
  cloud.wait_for(lambda: int(cloud.read('bucket/step')[0]) > 25)
  again = cloud.start('run', '--', *FLAGS)
  cloud.wait_for(lambda: len(cloud.calls('follow 20')) == 1)
  assert len(started(cloud)) == 2, 'not started twice'
  cloud.write('last', '1')
  out, err = again.communicate(timeout=200)
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
  out, err = process.communicate(timeout=200)
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
  process.communicate(timeout=200)
  assert cloud.launch('stop')[0] == 0
  code, out, _ = cloud.launch('logs')
  assert code == 0 and 'saved step' in out
  assert cloud.launch('status')[1].count('state=halted code=0 saved') == 2
  assert 'is given back' in cloud.launch('delete')[2]
  assert not list(cloud.folder.glob('host*')) and cloud.read('bucket/step')
