"""The picture of losses and its table show the numbers of the runs."""

import json
import pathlib
import sys

import numpy as np
import pytest

from t5x_variants import errors
from t5x_variants.analysis import loss_plot, plots
from t5x_variants.run_dir import layout

ROOT = pathlib.Path(__file__).parents[2]


def write_run(folder, config, held_out, seconds_per_step=0.5, rate=1000.0):
  """A run directory: held-out losses by step; a training record every 10."""
  folder.mkdir(parents=True)
  (folder / 'config.gin').write_text(config)
  (folder / 'model-info.txt').write_text(
    'wi/kernel  [2, 3]  embed, mlp  6\n\n1,234 parameters in all, 0 of them '
    'coefficients of activations.\n'
  )
  records = [
    {'step': step, 'split': 'eval', 'time': 1e9, 'loss': loss}
    for step, loss in held_out.items()
  ]
  records += [
    {
      'step': step,
      'split': 'train',
      # A restart in the middle: the clock on the wall means nothing.
      'time': 1e9 + 5000.0 * step,
      'loss': 9.0,
      'seconds_per_step': seconds_per_step * (1 if step <= 10 else 2),
      'tokens_per_second': rate,
    }
    for step in range(10, max(held_out) + 1, 10)
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(record) + '\n' for record in records)
  )
  return folder


def config(activation, gated, seed, more=''):
  return (
    f'# Macros:\nACTIVATION = {activation}\nGATED = {gated}\n'
    f"MODEL_DIR = \\\n    '/runs/of/{seed}'\nRANDOM_SEED = {seed}\n{more}"
  )


@pytest.fixture
def three_runs(tmp_path):
  """SwiGLU with two seeds, ReLU with one that ended earlier."""
  swiglu = {s: config("'swish'", True, s) for s in (0, 1)}
  return [
    write_run(tmp_path / 'a', swiglu[0], {0: 6.0, 10: 3.0, 20: 2.0}),
    write_run(
      tmp_path / 'b', swiglu[1], {0: 6.2, 10: 3.4, 20: 2.2}, 0.7, 3000.0
    ),
    write_run(tmp_path / 'c', config("'relu'", False, 0), {0: 6.0, 10: 2.5}),
  ]


@pytest.fixture
def plot(tmp_path):
  def plot(*folders, name='x.png', **options):
    return loss_plot.plot(folders, tmp_path / name, **options)

  return plot


def test_table_has_mean_and_spread(plot, three_runs, tmp_path, capsys):
  plot(*three_runs)
  rows = capsys.readouterr().out.splitlines()
  assert rows[1].split('  ')[0] == 'SwiGLU'
  spread = np.std([2.0, 2.2], ddof=1)
  assert f'2.1000 +- {spread:.4f}' in rows[1]
  assert '0, 1' in rows[1] and '1,234' in rows[1]
  assert rows[1].endswith('2,000')
  assert rows[2].startswith('ReLU') and '2.5000' in rows[2]
  assert '+-' not in rows[2]
  assert (tmp_path / 'x.png').stat().st_size > 1000


def test_lines_are_means_against_steps_and_time(plot, three_runs):
  by_step, by_time, last = plot(*three_runs, name='x.svg').axes
  lines = {line.get_label(): line for line in by_step.lines}
  assert list(lines) == ['ReLU', 'SwiGLU']
  np.testing.assert_allclose(lines['SwiGLU'].get_xdata(), [0, 10, 20])
  np.testing.assert_allclose(lines['SwiGLU'].get_ydata(), [6.1, 3.2, 2.1])
  np.testing.assert_allclose(lines['ReLU'].get_xydata(), [[0, 6], [10, 2.5]])
  timed = {line.get_label(): line for line in by_time.lines}
  # 10 steps of 0.5 and 0.7 s, then 10 of twice that; the mean over seeds.
  np.testing.assert_allclose(timed['SwiGLU'].get_xdata(), [0, 6, 18])
  np.testing.assert_allclose(timed['ReLU'].get_xdata(), [0, 5])
  assert '(seconds)' in by_time.get_xlabel()
  (band,) = by_step.collections
  low = band.get_paths()[0].vertices[:, 1].min()
  assert low == pytest.approx(2.1 - np.std([2.0, 2.2], ddof=1))
  names = [label.get_text() for label in last.get_yticklabels()]
  assert names == ['SwiGLU  2.100', 'ReLU  2.500']
  styles = {(str(x.get_color()), str(x.get_linestyle())) for x in by_step.lines}
  assert len(styles) == 2


def test_other_settings_are_not_seeds(plot, tmp_path, capsys):
  for rate in (0.5, 1.0):
    for seed in (0, 1):
      write_run(
        tmp_path / f'{rate}-{seed}',
        config("'gelu'", True, seed, f'LEARNING_RATE = {rate}\n'),
        {0: 6.0, 10: 3.0 + rate + seed},
      )
  plot(tmp_path)
  printed = capsys.readouterr()
  assert 'GEGLU (LEARNING_RATE 0.5)' in printed.out
  assert 'GEGLU (LEARNING_RATE 1.0)' in printed.out
  assert '4.0000 +- 0.7071' in printed.out
  assert 'differ in more than the variant: LEARNING_RATE' in printed.err


def test_options_of_a_rational_tell_runs_apart(plot, tmp_path, capsys):
  for version in 'AB':
    option = f"ACTIVATION/rational.rational.version = '{version}'\n"
    text = config('@rational.rational()', False, 0, option)
    write_run(tmp_path / version, text, {0: 6.0, 10: 3.0})
  plot(tmp_path)
  out = capsys.readouterr().out
  assert "Rational (version 'A')" in out and "Rational (version 'B')" in out


def test_a_run_that_goes_on_is_drawn(plot, three_runs, tmp_path, capsys):
  with (three_runs[0] / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 30, "spl')
  (tmp_path / 'new').mkdir()
  (tmp_path / 'new' / 'metrics.jsonl').touch()
  (three_runs[2] / 'config.gin').unlink()
  drawn = plot(tmp_path, with_training=True, whole=True)
  printed = capsys.readouterr()
  assert f'{tmp_path / "new"} has no training record yet' in printed.err
  assert 'c ' in printed.out  # without config.gin, the folder's name
  # The pale lines: the mean of training losses at steps 10 and 20.
  pale = [x for x in drawn.axes[0].lines if x.get_alpha() == 0.3]
  np.testing.assert_allclose(pale[0].get_ydata(), [9.0, 9.0])
  assert drawn.axes[0].get_ylim()[1] > 6.0


def test_what_is_no_run_or_damaged_does_not_stop_the_others(
  plot, three_runs, tmp_path, capsys
):
  record = b'{"step": 1, "split": "train", "time": 1.0, '
  damages = {
    'byte': record + b'"x": "\xff"}',
    'list': b'[1, 2]',
    'number': b'5',
    'split': b'{"step": 1}',
    'loss': record + b'"loss": null}',
    'rate': record + b'"loss": 1.0}',
  }
  for name in ('notes', 'new', 'bad', *damages):
    (tmp_path / name).mkdir()
  for name, line in {'new': b'', **damages}.items():
    (tmp_path / name / 'metrics.jsonl').write_bytes(line + b'\n')
  metrics = (three_runs[0] / 'metrics.jsonl').read_bytes()
  (tmp_path / 'bad' / 'metrics.jsonl').write_bytes(metrics)
  (tmp_path / 'bad' / 'config.gin').write_bytes(b'A = "\xff"')
  (tmp_path / 'loss.png').touch()
  everything = sorted(map(str, tmp_path.iterdir()))
  plot(*everything)
  printed = capsys.readouterr()
  assert 'SwiGLU' in printed.out and 'ReLU' in printed.out
  assert '2.1000 +- 0.1414' in printed.out
  others = ', '.join(str(tmp_path / name) for name in ('loss.png', 'notes'))
  assert f'no run directory, with a metrics.jsonl, in {others}.' in printed.err
  notes = [line for line in printed.err.splitlines() if 'left out: ' in line]
  for name in damages:
    assert any(f'{tmp_path / name} is damaged: ' in line for line in notes)
  assert any(f'{tmp_path}/bad/config.gin cannot be read' in x for x in notes)
  assert len(notes) == len(damages) + 2
  with pytest.raises(errors.UserError, match=r'list is damaged.*no record'):
    plot(tmp_path / 'list')


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(errors.UserError, match=r"'t5x-variants\[plot\]'"):
    plots.check_output('x.png')


def test_every_variant_file_has_a_name():
  names = {
    layout.variant(layout.parsed(file.read_text(encoding='utf-8')))
    for file in (ROOT / 'gin' / 'variants').glob('*.gin')
  }
  assert names == set(layout.VARIANTS)


def test_other_activations_keep_their_name():
  assert layout.variant({'ACTIVATION': "'mine'", 'GATED': 'False'}) == 'mine'
  assert layout.variant({'ACTIVATION': '@a.mine()', 'GATED': 'True'}) == (
    'mine GLU'
  )
  assert layout.variant({}) is None
