"""MFU and goodput against sums written out by hand."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from configs import t5_config

from t5x_variants import chips
from t5x_variants.run_dir import records, throughput

CONFIG = t5_config(
  vocab_size=1000,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=16,
  gated=False,
  activation='relu',
)
MEASURED = {'seconds_per_step': 0.5, 'tokens_per_second': 6000.0}
# Four rows of packed inputs and targets.
BATCH = {
  'encoder_input_tokens': np.zeros((4, 24)),
  'decoder_target_tokens': np.zeros((4, 6)),
}


def mesh_of(kind, devices):
  device = types.SimpleNamespace(device_kind=kind)
  return types.SimpleNamespace(size=devices, devices=np.full(devices, device))


def read(kind, devices=8):
  meter = throughput.Meter(
    CONFIG, mesh_of(kind, devices), throughput.Goodput(started=100.0)
  )
  return meter.read(10, 110.0, BATCH, MEASURED)


def test_mfu_of_a_step_written_out():
  # Multiplications of a row, forward: D = J = 8, F = 16, V = 1000.
  inputs, targets = 24, 6
  projections = 8 * 8
  block = 2 * 8 * 16
  row = inputs * (4 * projections + block) + 2 * 8 * inputs * inputs
  row += targets * (4 * projections + block) + 2 * 8 * targets * targets
  row += (2 * targets + 2 * inputs) * projections + 2 * 8 * targets * inputs
  row += targets * 8 * 1000
  # Two FLOPs each; the backward pass is two more forward ones; four rows.
  step = 2 * 3 * 4 * row
  found = read('TPU v5 lite')['mfu']
  assert found == pytest.approx(step / (0.5 * 8 * 197e12), rel=1e-12)


def test_remat_is_not_counted_as_work():
  # Nor does the formula look at anything but sizes.
  meter = throughput.Meter(
    dataclasses.replace(CONFIG, remat_policy='full', scan_layers=True),
    mesh_of('TPU v5 lite', 8),
    throughput.Goodput(started=100.0),
  )
  again = meter.read(10, 110.0, BATCH, MEASURED)
  assert again['mfu'] == read('TPU v5 lite')['mfu']


@pytest.mark.parametrize('kind', ['cpu', 'NVIDIA H100 80GB HBM3', 'TPU v99'])
def test_no_mfu_is_invented(kind):
  values = read(kind)
  assert 'mfu' not in values
  assert values['tokens_per_second_per_chip'] == 6000 / 8


def test_a_chip_of_two_devices_is_one_chip():
  assert chips.CHIPS['TPU7x'].devices == 2
  assert read('TPU7x')['tokens_per_second_per_chip'] == 6000 / 4
  assert read('TPU v4')['tokens_per_second_per_chip'] == 6000 / 8


def train(step, time, productive, wall):
  """A record: of `wall` seconds so far the steps took `productive`."""
  return {
    'split': 'train',
    'step': step,
    'time': time,
    'goodput': productive / wall,
    'wall_seconds': wall,
  }


def test_goodput_is_step_time_over_wall_time():
  meter = throughput.Meter(
    CONFIG, mesh_of('cpu', 1), throughput.Goodput(started=100.0)
  )
  # 10 s went to building and compiling, 10 steps took 5 s.
  first = meter.read(10, 115.0, BATCH, MEASURED)
  assert first['goodput'] == pytest.approx(5 / 15)
  assert first['wall_seconds'] == 15
  # An evaluation of 3 s, 20 steps of 10 s.
  second = meter.read(30, 128.0, BATCH, MEASURED)
  assert second['goodput'] == pytest.approx(15 / 28)


def test_goodput_across_a_restart():
  """Killed at 170, saved at step 25, started again an hour later."""
  earlier = [
    {'split': 'eval', 'step': 0, 'time': 108.0},
    train(20, 130.0, 15.0, 30.0),
    train(30, 160.0, 35.0, 60.0),  # Its steps from 26 on are repeated.
  ]
  goodput = throughput.Goodput.of(earlier, 3700.0, first_step=25)
  assert goodput.started == 100.0
  assert goodput.productive == 15.0
  goodput.count(30, 3.0)
  # The steps 21 to 25 were not repeated and count, at the pace of the record.
  assert goodput.productive == 15 + 10 * 3.0
  assert goodput.read(3760.0) == {'goodput': 45 / 3660, 'wall_seconds': 3660.0}


def test_a_run_that_was_never_saved_began_when_it_began():
  earlier = [train(10, 115.0, 5.0, 15.0)]
  goodput = throughput.Goodput.of(earlier, 400.0, first_step=0)
  assert (goodput.started, goodput.step, goodput.productive) == (100.0, 0, 0.0)
  # Stopped before its first record, it is known by its first evaluation.
  only = [{'split': 'eval', 'step': 0, 'time': 108.0}]
  assert throughput.Goodput.of(only, 400.0, 0).started == 108.0
  assert throughput.Goodput.of([], 400.0, 0).started == 400.0


def test_goodput_is_a_share():
  # The clocks of two machines differ.
  goodput = throughput.Goodput(started=100.0)
  goodput.count(10, 1.0)
  assert goodput.read(105.0)['goodput'] == 1.0
  assert throughput.Goodput(started=100.0).read(100.0)['goodput'] == 0.0


def test_the_records_a_restart_drops_still_tell_when_the_run_began(tmp_path):
  writer = records.RunWriter(tmp_path)
  assert writer.earlier == []
  for step in (10, 20):
    writer.write(step, 'train', {'seconds_per_step': 1.0, 'wall_seconds': 50.0})
  writer.close()
  writer = records.RunWriter(tmp_path, 0)
  writer.close()
  assert [record['step'] for record in writer.earlier][:1] == [10]
  goodput = throughput.Goodput.of(writer.earlier, 1e12, 0)
  assert goodput.started == writer.earlier[0]['time'] - 50.0


def test_the_mesh_of_this_machine_is_understood():
  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  meter = throughput.Meter(CONFIG, mesh, throughput.Goodput(started=100.0))
  values = meter.read(10, 110.0, BATCH, MEASURED)
  assert values == {
    'tokens_per_second_per_chip': 6000.0,
    'goodput': 0.5,
    'wall_seconds': 10.0,
  }
