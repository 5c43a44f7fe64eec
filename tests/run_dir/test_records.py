"""What a run leaves behind: each step once, readable by other programs."""

import contextlib
import io
import json
import os
import resource
import signal
import struct
import time
import tracemalloc

import hypothesis
import pytest
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from t5x_variants import errors, logs
from t5x_variants.run_dir import records

VALUES = {'loss': 2.5, 'accuracy': 0.25}


def lines(folder):
  text = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def steps(folder, split=None):
  return [record['step'] for record in records.read(folder, split)]


def write(folder, wanted, first_step=0, split='train'):
  writer = records.RunWriter(folder, first_step)
  for step in wanted:
    writer.write(step, split, VALUES)
  writer.close()


def test_averages_are_per_target_token():
  sums = {'loss': 30.0, 'z_loss': 1.5, 'correct': 6.0, 'weights': 12.0}
  assert records.per_token(sums) == {
    'loss': 2.5,
    'z_loss': 0.125,
    'accuracy': 0.5,
  }
  nothing = dict.fromkeys(sums, 0.0)
  assert records.per_token(nothing)['loss'] == 0.0


def test_a_record_is_one_json_object_a_line(tmp_path):
  before = time.time()
  write(tmp_path, [10, 20])
  first, second = lines(tmp_path)
  assert first['step'] == 10 and second['step'] == 20
  assert first['split'] == 'train'
  assert before <= first['time'] <= time.time()
  assert {name: first[name] for name in VALUES} == VALUES


def test_splits_are_kept_apart(tmp_path):
  write(tmp_path, [10], split='train')
  write(tmp_path, [10], split='eval', first_step=10)
  assert steps(tmp_path, 'train') == steps(tmp_path, 'eval') == [10]
  assert steps(tmp_path) == [10, 10]


@pytest.mark.parametrize('lost', [0, 1])  # The last line may lack its end.
@pytest.mark.parametrize(
  'first, saved, second, expected',
  [
    ([10, 20, 30], 20, [30, 40], [10, 20, 30, 40]),
    ([10, 20], 20, [30], [10, 20, 30]),
    ([0, 10], 0, [0, 10], [0, 10]),  # Never saved: evaluated again too.
  ],
)
def test_after_a_restart_each_step_stands_once(
  tmp_path, first, saved, second, expected, lost
):
  write(tmp_path, first)
  path = tmp_path / 'metrics.jsonl'
  os.truncate(path, path.stat().st_size - lost)
  write(tmp_path, second, first_step=saved)
  assert steps(tmp_path) == expected


@pytest.mark.parametrize('rest', ['{"step": 30, "spl', '{"step": 3', '\n'])
def test_a_half_written_last_line_is_no_record(tmp_path, rest):
  write(tmp_path, [10, 20])
  with (tmp_path / 'metrics.jsonl').open('a', encoding='utf-8') as file:
    file.write(rest)
  # While it is being written, and after the run that wrote it was killed.
  assert steps(tmp_path) == [10, 20]
  write(tmp_path, [30], first_step=20)
  assert steps(tmp_path) == [10, 20, 30]
  assert [record['step'] for record in lines(tmp_path)] == [10, 20, 30]


@pytest.mark.parametrize(
  'line',
  [
    b'\xff\xfe not UTF-8\n',
    b'[1, 2]\n',
    b'7\n',
    b'{"step": "20", "split": "train", "time": 1.0}\n',
    b'{"step": 20.5, "split": "train", "time": 1.0}\n',
    b'{"step": 20}\n',
    b'\n\n',
    b'{"a":' * 5000 + b'\n',
  ],
)
@pytest.mark.parametrize('place', ['before', 'after', 'alone'])
def test_a_line_that_is_no_record_stops_nothing(tmp_path, line, place):
  write(tmp_path, [] if place == 'alone' else [10, 20])
  path = tmp_path / 'metrics.jsonl'
  path.touch()
  before = path.read_bytes()
  path.write_bytes(line + before if place == 'before' else before + line)
  kept = [] if place == 'alone' else [10, 20]
  assert steps(tmp_path) == kept
  write(tmp_path, [30], first_step=20)
  assert steps(tmp_path) == [*kept, 30]
  assert records.last_step(tmp_path) == 30


@hypothesis.given(
  lengths=st.lists(st.integers(0, 300), max_size=30),
  ends=st.booleans(),
  block=st.integers(1, 200),
)
def test_lines_are_read_backwards_in_any_blocks(lengths, ends, block):
  lines = [b'%d' % (i % 10) * n + b'\n' for i, n in enumerate(lengths)]
  data = b''.join(lines) + (b'' if ends else b'rest')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(records, '_BLOCK', block)
    found = list(records._lines_backwards(io.BytesIO(data)))
  assert [line for *_, line in found] == data.splitlines(keepends=True)[::-1]
  assert all(data[begin:end] == line for begin, end, line in found)


def test_a_long_run_goes_on_at_the_cost_of_its_end(tmp_path):
  """A million records took a minute and 3 GiB to go on from."""
  line = '{"step": %d, "split": "train", "time": 1.0, "loss": 2.0}\n'
  with (tmp_path / 'metrics.jsonl').open('w') as file:
    file.writelines(line % step for step in range(1, 300_001))
  tracemalloc.start()
  begun = time.process_time()
  write(tmp_path, [], first_step=299_995)
  assert time.process_time() - begun < 1.0
  assert tracemalloc.get_traced_memory()[1] < 20e6
  tracemalloc.stop()
  assert records.last_step(tmp_path) == 299_995


@contextlib.contextmanager
def full_disk():
  """No file can grow beyond four bytes, as if no space were left."""
  # A file system that is full for a moment, without a file system of one's own.
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_is_full_for_a_moment_loses_no_record(tmp_path):
  """It stopped TensorBoard's writer for good, and with it the run."""
  writer = records.RunWriter(tmp_path)
  writer.write(1, 'train', VALUES)
  assert steps(tmp_path) == [1]
  with full_disk():
    # More than any queue holds.
    for step in range(2, 50):
      writer.write(step, 'train', VALUES)
  writer.write(50, 'train', VALUES)
  assert steps(tmp_path) == list(range(1, 51))
  writer.flush()
  writer.close()
  assert sorted(
    event.step
    for event in events(tmp_path)
    for value in event.summary.value
    if value.tag == 'train/loss'
  ) == list(range(1, 51))


def test_a_disk_that_stays_full_is_one_sentence_before_a_checkpoint(tmp_path):
  with records.RunWriter(tmp_path) as writer:
    writer.write(1, 'train', VALUES)
    with full_disk():
      writer.write(2, 'train', VALUES)
      with pytest.raises(errors.UserError, match='make room'):
        writer.flush()
      assert steps(tmp_path) == [1]
  assert steps(tmp_path) == [1, 2]


def test_closing_does_not_hide_the_error_that_ended_the_run(tmp_path):
  with (
    full_disk(),
    pytest.raises(ZeroDivisionError),
    records.RunWriter(tmp_path) as writer,
  ):
    writer.write(1, 'train', VALUES)
    raise ZeroDivisionError


def test_events_are_there_before_the_run_ends(tmp_path):
  writer = records.RunWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, 'train', VALUES)
  # As after SIGKILL: nothing is closed.
  found = [e.step for e in events(tmp_path) if e.summary.value]
  assert found == [1, 1, 2, 2, 3, 3]
  writer.close()


def test_a_folder_without_metrics_is_named(tmp_path):
  with pytest.raises(errors.UserError, match=r'metrics.jsonl') as error:
    records.read(tmp_path / 'nowhere')
  assert 'nowhere' in str(error.value)


def events(folder):
  """TensorBoard's events: records of length, checksum, event, checksum."""
  found = []
  for path in sorted(folder.glob('events.out.tfevents.*')):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_tensorboard_reads_the_same_numbers(tmp_path):
  writer = records.RunWriter(tmp_path)
  writer.write(10, 'train', VALUES)
  writer.write(10, 'eval', VALUES)
  writer.write_text('config', 'BATCH_SIZE = 16')
  writer.close()
  scalars, texts = {}, []
  for event in events(tmp_path):
    for value in event.summary.value:
      if value.HasField('simple_value'):
        scalars[value.tag, event.step] = value.simple_value
      else:
        texts.extend(value.tensor.string_val)
  assert scalars == {
    (f'{split}/{name}', 10): value
    for split in ('train', 'eval')
    for name, value in VALUES.items()
  }
  assert any(b'BATCH_SIZE = 16' in text for text in texts)


@pytest.mark.parametrize('first_step, purged', [(0, 0), (20, 21)])
def test_a_restart_purges_what_it_writes_again(tmp_path, first_step, purged):
  write(tmp_path, [30], first_step=first_step)
  starts = [
    event.step
    for event in events(tmp_path)
    if event.session_log.status == event_pb2.SessionLog.START
  ]
  assert starts == [purged]


@pytest.fixture
def at(monkeypatch):
  """A clock that stands still until told the time."""
  now = [100.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

  def advance(seconds):
    now[0] += seconds

  return advance


def test_the_clock_counts_steps_waits_and_leaves_pauses_out(at):
  clock = records.Clock()
  for _ in range(4):
    with clock.waiting():
      at(0.5)
    at(1.5)
  with clock.paused():
    at(100)
  assert clock.read(tokens_per_step=1000) == {
    'seconds_per_step': 2.0,
    'tokens_per_second': 500.0,
    'data_wait': 0.25,
  }
  # The next reading starts anew.
  with clock.waiting():
    at(1)
  assert clock.read(1000)['seconds_per_step'] == 1.0


def test_the_clock_can_be_read_before_a_step(at):
  clock = records.Clock()
  at(2)
  assert clock.read(1000)['data_wait'] == 0.0


@pytest.mark.parametrize(
  'step, seconds_per_step, left',
  [
    (900, 0.5, '0:50 left'),
    (400, 0.5, '5:00 left'),
    (0, 9.0, '2:30:00 left'),
    (1000, 0.5, '0:00 left'),
    (1001, 0.5, '0:00 left'),
  ],
)
def test_the_line_says_how_long(step, seconds_per_step, left):
  values = {
    'loss': 2.34567,
    'accuracy': 0.4251,
    'seconds_per_step': seconds_per_step,
    'tokens_per_second': 12345.6,
    'data_wait': 0.0123,
  }
  line = records.progress_line(step, 1000, values)
  assert line == (
    f'step {step:>4}/1000  loss 2.3457  accuracy 42.51%  '
    f'12,346 tokens/s  data wait 1.2%  {left}'
  )


def test_the_line_has_what_a_tpu_gives():
  values = {
    'loss': 2.0,
    'accuracy': 0.5,
    'seconds_per_step': 1.0,
    'tokens_per_second': 8000.0,
    'data_wait': 0.0,
    'tokens_per_second_per_chip': 1000.0,
    'mfu': 0.4321,
    'goodput': 0.987,
  }
  assert records.progress_line(10, 10, values).split('  ')[3:] == [
    '8,000 tokens/s',
    '1,000 a chip',
    'MFU 43.2%',
    'data wait 0.0%',
    'goodput 98.7%',
    '0:00 left',
  ]


def test_a_line_is_said_at_once_and_not_on_stdout(capsys):
  logs.say('hello')
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ('', 'hello\n')
