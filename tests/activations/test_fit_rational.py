"""tools/fit_rational.py: the stored table is what it finds, rows are added."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from t5x_variants import errors
from t5x_variants.activations import rational

_PATH = pathlib.Path(__file__).parents[2] / 'tools' / 'fit_rational.py'


@pytest.fixture(scope='module')
def tool():
  spec = importlib.util.spec_from_file_location('fit_rational', _PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('form, name', [('3/2', 'relu'), ('5/4', 'swish')])
def test_stored_rows_are_what_the_tool_finds(tool, form, name):
  m, n = map(int, form.split('/'))
  a, b = tool.fit(tool.FUNCTIONS[name], m, n)
  row = rational.load('fitted')[form][name]
  x = np.linspace(-10.0, 10.0, 501)
  np.testing.assert_allclose(
    tool.evaluate(a, b, x),
    tool.evaluate(row['numerator'], row['denominator'], x),
    atol=1e-5,
  )


def test_every_stored_denominator_is_safe_in_all_versions(tool):
  table = rational.load('fitted')
  assert set(table) >= set(tool.DEGREES)
  for form, rows in table.items():
    assert set(rows) == set(tool.FUNCTIONS) or form not in tool.DEGREES
    for row in rows.values():
      denominator = np.asarray(row['denominator'])
      assert np.all(denominator >= 0) and np.all(denominator[::2] == 0)


def test_linear_part_is_exact(tool):
  """f(x) - f(-x) = x for the ReLU-likes: the odd part is x Q / 2."""
  for rows in rational.load('fitted').values():
    for name in ('gelu', 'relu', 'swish'):
      numerator = np.asarray(rows[name]['numerator'][1::2])
      q = np.asarray([1.0, *rows[name]['denominator'][1::2]])
      np.testing.assert_allclose(numerator, q / 2, rtol=1e-6)


def test_adds_rows_and_keeps_the_others(tool, tmp_path, monkeypatch, capsys):
  path = tmp_path / 'fitted.json'
  path.write_text('{"5/4": {"gelu": {"numerator": [1.0]}}}')
  monkeypatch.setattr(rational, 'path', lambda name: path)
  tool.main(['--degrees', '1/2', '4/0', '--approximates', 'tanh'])
  table = json.loads(path.read_text())
  assert table['5/4'] == {'gelu': {'numerator': [1.0]}}
  assert len(table['1/2']['tanh']['numerator']) == 2
  assert len(table['4/0']['tanh']['denominator']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and lines[1].startswith('1/2   tanh')
  before = path.read_text()
  tool.main(['--degrees', '2/2', '--approximates', 'tanh', '--dry-run'])
  assert path.read_text() == before


def test_degrees_that_are_none(tool):
  with pytest.raises(errors.UserError, match=r"degrees '5': write .* as 5/4"):
    tool.main(['--degrees', '5'])
