"""Slices by the names users know."""

import importlib.util

import pytest

from t5x_variants import chips, errors
from t5x_variants.tpu import topologies


@pytest.mark.parametrize(
  'name, chips, shape',
  [
    ('v4-8', 4, '2x2x1'),
    ('v4-512', 256, '4x8x8'),
    ('v5e-8', 8, '2x4'),
    ('v5litepod-8', 8, '2x4'),
    ('v5e-256', 256, '16x16'),
    ('v5p-128', 64, '4x4x4'),
    ('v6e-1', 1, '1x1'),
    ('V6E-256', 256, '16x16'),
    ('tpu7x-128', 64, '4x4x4'),
  ],
)
def test_the_number_counts_chips_or_cores(name, chips, shape):
  found = topologies.named(name)
  assert (found.chips, found.shape) == (chips, shape)


def test_every_slice_is_found_under_its_own_name():
  for name, found in topologies.SLICES.items():
    assert topologies.named(name) == found and found.name == name
  generations = {found.generation for found in topologies.SLICES.values()}
  assert generations == {chip.name for chip in chips.CHIPS.values()}


@pytest.mark.parametrize('name', ['v5e-7', 'v5e', '', 'v9-8', 'v5e-256-8', '8'])
def test_an_unknown_slice_lists_the_known(name):
  with pytest.raises(errors.UserError) as error:
    topologies.named(name)
  message = str(error.value)
  assert f'--topology={name} ' in message
  assert all(known in message for known in topologies.SLICES)


def test_a_near_miss_is_guessed():
  with pytest.raises(errors.UserError, match='Did you mean v5e-256'):
    topologies.named('v5e-265')


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError) as error:
    topologies.devices(topologies.named('v5e-8'))
  assert "pip install 't5x-variants[tpu]'" in str(error.value)
