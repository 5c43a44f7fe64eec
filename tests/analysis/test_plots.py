"""tools/plot_*.py: the numbers printed and drawn are those of the runs."""

import dataclasses
import json
import pathlib
import sys

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import matplotlib.collections
import numpy as np
import pytest
from configs import t5_config

from t5x_variants import activations, errors
from t5x_variants.cli import gin_utils
from t5x_variants.data import config as data_config
from t5x_variants.model import network
from t5x_variants.run_dir import layout, records
from t5x_variants.training import checkpoints

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def tools():
  """The two scripts, imported as they import each other."""
  sys.path.insert(0, str(_ROOT / 'tools'))
  try:
    import figures
    import plot_activations
    import plot_runs

    yield {
      'figures': figures,
      'activations': plot_activations,
      'runs': plot_runs,
    }
  finally:
    sys.path.remove(str(_ROOT / 'tools'))


# --- plot_runs ---


def _write_run(folder, config, held_out, seconds_per_step=0.5, rate=1000.0):
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
  return str(folder)


def _config(activation, gated, seed, more=''):
  return (
    f'# Macros:\nACTIVATION = {activation}\nGATED = {gated}\n'
    f"MODEL_DIR = \\\n    '/runs/of/{seed}'\nRANDOM_SEED = {seed}\n{more}"
  )


@pytest.fixture
def three_runs(tmp_path):
  """SwiGLU with two seeds, ReLU with one that ended earlier."""
  swiglu = {s: _config("'swish'", True, s) for s in (0, 1)}
  return [
    _write_run(tmp_path / 'a', swiglu[0], {0: 6.0, 10: 3.0, 20: 2.0}),
    _write_run(
      tmp_path / 'b', swiglu[1], {0: 6.2, 10: 3.4, 20: 2.2}, 0.7, 3000.0
    ),
    _write_run(tmp_path / 'c', _config("'relu'", False, 0), {0: 6.0, 10: 2.5}),
  ]


def test_table_has_mean_and_spread(tools, three_runs, tmp_path, capsys):
  tools['runs'].main([*three_runs, '-o', str(tmp_path / 'loss.png')])
  rows = capsys.readouterr().out.splitlines()
  assert rows[1].split('  ')[0] == 'SwiGLU'
  spread = np.std([2.0, 2.2], ddof=1)
  assert f'2.1000 +- {spread:.4f}' in rows[1]
  assert '0, 1' in rows[1] and '1,234' in rows[1]
  assert rows[1].endswith('2,000')
  assert rows[2].startswith('ReLU') and '2.5000' in rows[2]
  assert '+-' not in rows[2]
  assert (tmp_path / 'loss.png').stat().st_size > 1000


def test_lines_are_means_against_steps_and_time(tools, three_runs, tmp_path):
  drawn = tools['runs'].main([*three_runs, '-o', str(tmp_path / 'loss.svg')])
  by_step, by_time, last = drawn.axes
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


def test_other_settings_are_not_seeds(tools, tmp_path, capsys):
  folders = [
    _write_run(
      tmp_path / f'{rate}-{seed}',
      _config("'gelu'", True, seed, f'LEARNING_RATE = {rate}\n'),
      {0: 6.0, 10: 3.0 + rate + seed},
    )
    for rate in (0.5, 1.0)
    for seed in (0, 1)
  ]
  tools['runs'].main([*folders, '-o', str(tmp_path / 'x.png')])
  printed = capsys.readouterr()
  assert 'GEGLU (LEARNING_RATE 0.5)' in printed.out
  assert 'GEGLU (LEARNING_RATE 1.0)' in printed.out
  assert '4.0000 +- 0.7071' in printed.out
  assert 'differ in more than the variant: LEARNING_RATE' in printed.err


def test_options_of_a_rational_tell_runs_apart(tools, tmp_path, capsys):
  folders = [
    _write_run(
      tmp_path / version,
      _config(
        '@rational.rational()',
        False,
        0,
        f"ACTIVATION/rational.rational.version = '{version}'\n",
      ),
      {0: 6.0, 10: 3.0},
    )
    for version in 'AB'
  ]
  tools['runs'].main([*folders, '-o', str(tmp_path / 'x.png')])
  out = capsys.readouterr().out
  assert "Rational (version 'A')" in out and "Rational (version 'B')" in out


def test_a_run_that_goes_on_is_drawn(tools, three_runs, tmp_path, capsys):
  with open(f'{three_runs[0]}/metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "spl')
  (tmp_path / 'new').mkdir()
  (tmp_path / 'new' / 'metrics.jsonl').touch()
  (pathlib.Path(three_runs[2]) / 'config.gin').unlink()
  assert len(records.read(three_runs[0], 'eval')) == 3
  output = ['-o', str(tmp_path / 'x.png')]
  drawn = tools['runs'].main(
    [*three_runs, str(tmp_path / 'new'), *output, '--train', '--whole']
  )
  printed = capsys.readouterr()
  assert f'{tmp_path / "new"} has no training record yet' in printed.err
  assert 'c ' in printed.out  # without config.gin, the folder's name
  # The pale lines: the mean of training losses at steps 10 and 20.
  pale = [x for x in drawn.axes[0].lines if x.get_alpha() == 0.3]
  np.testing.assert_allclose(pale[0].get_ydata(), [9.0, 9.0])
  assert drawn.axes[0].get_ylim()[1] > 6.0


def test_every_variant_file_has_a_name():
  names = {
    layout.variant(_bindings(file.read_text()))
    for file in (_ROOT / 'gin' / 'variants').glob('*.gin')
  }
  assert names >= set(layout.VARIANTS)
  assert None not in names


def _bindings(text):
  """The two macros of a variant file."""
  pairs = (line.split(' = ', 1) for line in text.splitlines() if ' = ' in line)
  return {k: v for k, v in pairs if k in ('ACTIVATION', 'GATED')}


def test_other_activations_keep_their_name():
  assert layout.variant({'ACTIVATION': "'mine'", 'GATED': 'False'}) == 'mine'
  assert layout.variant({'ACTIVATION': '@a.mine()', 'GATED': 'True'}) == (
    'mine GLU'
  )
  assert layout.variant({}) is None


@pytest.mark.parametrize(
  'tool, arguments, sentence',
  [
    ('runs', ['{tmp}'], 'is no run directory, for it has no metrics.jsonl'),
    ('runs', ['{tmp}/none'], 'no run directory'),
    ('runs', ['{tmp}/empty', '-o', '{tmp}/x.png'], 'no training record yet'),
    ('runs', ['{tmp}', '{tmp}/empty'], 'no metrics.jsonl. .* no training'),
    ('runs', ['{tmp}', '--wohle'], 'arguments: --wohle. Did you mean --whole'),
    ('runs', [], 'required: RUN'),
    ('activations', ['{tmp}', '{tmp}'], 'Unrecognized arguments: '),
    ('runs', ['{tmp}', '-o', '{tmp}/no/x.png'], 'there is no folder'),
    ('runs', ['{tmp}', '-o', '{tmp}/x.docx'], 'one of .*png'),
    ('activations', ['{tmp}'], 'no run directory: it has no config.gin'),
    ('activations', ['{tmp}/empty'], 'has no checkpoint yet'),
    ('activations', ['{tmp}/empty', '--batches', '0'], 'at least 1'),
    ('activations', ['{tmp}/empty', '-o', '{tmp}/no/x.png'], 'no folder'),
  ],
)
def test_a_slip_is_one_sentence(
  tools, tmp_path, capsys, tool, arguments, sentence
):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'empty' / 'config.gin').touch()
  (tmp_path / 'empty' / 'metrics.jsonl').touch()
  arguments = [text.format(tmp=tmp_path) for text in arguments]
  if '-o' not in arguments:
    arguments += ['-o', str(tmp_path / 'x.png')]
  with pytest.raises(errors.UserError, match=sentence):
    tools[tool].main(arguments)
  with pytest.raises(SystemExit) as stopped:
    tools['figures'].run(lambda: tools[tool].main(arguments))
  assert stopped.value.code == 2
  assert 'error: ' in capsys.readouterr().err


def test_what_is_no_run_or_damaged_does_not_stop_the_others(
  tools, three_runs, tmp_path, capsys
):
  for name in ('sweep', 'notes', 'new'):
    (tmp_path / name).mkdir()
  (tmp_path / 'loss.png').touch()
  (tmp_path / 'new' / 'metrics.jsonl').touch()
  damages = {
    'byte': b'{"step": 1, "split": "train", "x": "\xff"}\n',
    'list': b'[1, 2]\n',
    'number': b'5\n',
    'split': b'{"step": 1}\n',
    'loss': b'{"step": 1, "split": "train", "loss": null}\n',
    'rate': b'{"step": 1, "split": "train", "loss": 1.0}\n',
  }
  for name, line in damages.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'metrics.jsonl').write_bytes(line)
  (tmp_path / 'bad').mkdir()
  for name in ('metrics.jsonl', 'model-info.txt'):
    (tmp_path / 'bad' / name).write_bytes(
      (pathlib.Path(three_runs[0]) / name).read_bytes()
    )
  (tmp_path / 'bad' / 'config.gin').write_bytes(b'A = "\xff"')
  everything = sorted(map(str, tmp_path.iterdir()))
  assert set(three_runs) < set(everything)
  tools['runs'].main([*everything, '-o', str(tmp_path / 'x.png')])
  printed = capsys.readouterr()
  assert 'SwiGLU' in printed.out and 'ReLU' in printed.out
  assert '2.1000 +- 0.1414' in printed.out
  notes = [line for line in printed.err.splitlines() if 'left out: ' in line]
  others = [tmp_path / name for name in ('loss.png', 'notes', 'sweep')]
  assert notes[0] == (
    f'note: left out: {", ".join(map(str, others))} are no run directories, '
    'for they have no metrics.jsonl.'
  )
  for name in damages:
    assert any(f'{tmp_path / name} is damaged: ' in line for line in notes)
  assert any(f'{tmp_path}/bad/config.gin cannot be read' in x for x in notes)
  assert len(notes) == 1 + len(damages) + 1 + 1
  with pytest.raises(errors.UserError, match=r'list is damaged.*no record'):
    tools['runs'].main([str(tmp_path / 'list'), '-o', f'{tmp_path}/y.png'])


def test_without_matplotlib_it_says_what_to_install(tools, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(errors.UserError, match=r"'t5x-variants\[plot\]'"):
    tools['runs'].main(['anything'])


# --- plot_activations ---


class _NoPosition:
  """Stands for the data's position in a checkpoint."""

  def save(self, directory):
    pathlib.Path(directory, 'position').touch()


@pytest.fixture(scope='module')
def activation_run(tmp_path_factory):
  """A run directory of a small rational model with shaken coefficients."""
  folder = tmp_path_factory.mktemp('runs') / 'rational'
  gin.clear_config()
  gin_utils.parse(
    [
      'gin/models/tiny.gin',
      'gin/variants/rational.gin',
      'gin/data/embedded.gin',
      'gin/runs/pretrain.gin',
    ],
    [
      f"MODEL_DIR='{folder}'",
      'TRAIN_STEPS=10',
      'MLP_DIM=48',
      "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
    ],
  )
  model = gin_utils.macro('MODEL')
  with gin.config_scope('eval'):
    batches = gin_utils.configured(data_config.DatasetConfig)().open()
  params = _shaken(model)
  saved = checkpoints.Checkpoints(
    folder / 'checkpoints', checkpoints.CheckpointConfig()
  )
  for step in (5, 10):
    scale = step / 10
    saved.save(
      step,
      {'params': jax.tree.map(lambda x: scale * x, params), 'opt_state': {}},  # noqa: B023
      _NoPosition(),
    )
  saved.close()
  (folder / 'config.gin').write_text(gin.operative_config_str())
  gin.clear_config()
  return folder, model, params, next(batches)


def _shaken(model, seed=0):
  """Random parameters; no two layers have equal coefficients."""
  tokens = jnp.ones((1, 4), jnp.int32)
  params = model.init(
    jax.random.key(seed), tokens, tokens, tokens, enable_dropout=False
  )['params']
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  noisy = [x * rng.uniform(0.8, 1.2, x.shape).astype('f') for x in leaves]
  return jax.tree.unflatten(tree, noisy)


def _inputs_of_blocks(model, params, batch):
  """The normed input of each feed-forward block, by way of its norm."""
  _, seen = model.apply(
    {'params': params},
    *(batch[f'{name}_tokens'] for name in _TOKENS),
    encoder_segment_ids=batch.get('encoder_segment_ids'),
    decoder_segment_ids=batch.get('decoder_segment_ids'),
    enable_dropout=False,
    mutable=['intermediates'],
    capture_intermediates=lambda module, _: (
      module.name == 'pre_mlp_layer_norm' and isinstance(module, nn.Module)
    ),
  )
  return seen['intermediates']


_TOKENS = ('encoder_input', 'decoder_input', 'decoder_target')


def test_curves_and_histograms_of_a_run(
  tools, activation_run, tmp_path, capsys
):
  folder, model, params, batch = activation_run
  tool = tools['activations']
  drawn = tool.main(
    [str(folder), '-o', str(tmp_path / 'a.png'), '--batches', '1']
  )
  out = capsys.readouterr().out
  batch = {name: value[: tool.ROWS] for name, value in batch.items()}
  blocks = _inputs_of_blocks(model, params, batch)
  activation = activations.get('rational')
  panels = {ax.get_title(): ax for ax in drawn.axes if ax.get_title()}
  assert list(panels) == ['encoder 0', 'encoder 1', 'decoder 0', 'decoder 1']
  for name, panel in panels.items():
    stack, index = name.split()
    mlp = params[stack][f'layers_{index}']['mlp']
    (x,) = blocks[stack][f'layers_{index}']['pre_mlp_layer_norm']['__call__']
    tokens = _TOKENS[0] if stack == 'encoder' else _TOKENS[2]
    real = batch[f'{tokens}_tokens'] > 0
    assert real.sum() > 0
    z = np.asarray(x @ mlp['wi']['kernel'])[real]
    low, high = np.quantile(z, [0.001, 0.999])
    learned, start = panel.lines
    grid = learned.get_xdata()
    np.testing.assert_allclose(grid[[0, -1]], [low, high], rtol=1e-4)
    np.testing.assert_allclose(
      learned.get_ydata(),
      activation.fn(jnp.asarray(grid), mlp['activation']),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      start.get_ydata(),
      activation.fn(jnp.asarray(grid), activation.init()),
      rtol=1e-5,
    )
    assert start.get_linestyle() != '-'
    (bars,) = _behind(drawn, panel).patches
    counts, edges = bars.get_data()[:2]
    expected = np.histogram(z, edges)[0]
    # A value on an edge may fall to either side of it.
    assert np.abs(counts - expected).sum() <= 4
    assert counts.sum() >= 0.997 * z.size
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert f'{np.mean(np.abs(z) > 3):.2%}' in row
    numbers = [f'{v:.5g}' for v in mlp['activation']['numerator']]
    assert all(number in out for number in numbers)
  assert 'Rational at step 10 ' in _legend_title(drawn)


def _behind(drawn, panel):
  """The axes of a panel's histogram."""
  (twin,) = [
    ax
    for ax in drawn.axes
    if ax is not panel and ax.bbox.bounds == panel.bbox.bounds
  ]
  return twin


def _legend_title(drawn):
  return drawn.legends[0].get_title().get_text()


def _batch(rng, rows=2, length=6, vocabulary=20):
  batch = {
    f'{name}_tokens': rng.integers(1, vocabulary, (rows, length))
    for name in _TOKENS
  }
  batch['encoder_input_tokens'][0, 4:] = 0
  batch['decoder_target_tokens'][1, 3:] = 0
  return batch


def _small(activation, **kwargs):
  return network.Transformer(
    t5_config(
      vocab_size=20,
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      mlp_dim=12,
      num_encoder_layers=2,
      num_decoder_layers=3,
      activation=activation,
      **kwargs,
    )
  )


@pytest.mark.parametrize('gated', [False, True])
def test_scanned_and_unrolled_show_the_same(tools, gated):
  rng = np.random.default_rng(1)
  batches = [_batch(rng), _batch(rng)]
  unrolled = _small('rational', gated=gated)
  scanned = _small(
    'rational', gated=gated, scan_layers=True, remat_policy='minimal'
  )
  params = _shaken(unrolled)
  observe = tools['activations'].observe
  one = observe(unrolled, params, batches)
  other = observe(scanned, network.stack_layers(params), batches)
  names = ['encoder 0', 'encoder 1', 'decoder 0', 'decoder 1', 'decoder 2']
  assert [layer.name for layer in one] == names
  # Padding is left out: 2 of 24 tokens twice, 3 of 24 twice.
  assert one[0].z.shape == (20, 12) and one[2].z.shape == (18, 12)
  for a, b in zip(one, other, strict=True):
    assert a.name == b.name
    np.testing.assert_allclose(a.z, b.z, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, a.coefficients, b.coefficients)


def test_polynorm_is_drawn_in_rows_that_were_seen(tools):
  tool = tools['activations']
  rng = np.random.default_rng(2)
  activation = activations.get('polynorm')
  z = rng.normal(size=(50, 64)).astype('f')
  coefficients = {
    'weight': np.asarray([0.5, -0.2, 0.1], 'f'),
    'bias': np.asarray([0.3], 'f'),
  }
  layer = tool.Layer('encoder 0', coefficients, z)
  x = np.linspace(-3, 3, 7, dtype='f')
  drawn = tool.values(activation, coefficients, x, layer)
  rows = tool.typical_rows(z).astype(np.float64)
  assert drawn.shape == (tool.TYPICAL, 7)
  expected = np.full(drawn.shape, 0.3)
  for power, weight in enumerate(coefficients['weight'], start=1):
    total = (rows ** (2 * power)).sum(1)[:, None] + x ** (2.0 * power)
    expected += weight * x**power / np.sqrt(total / 65 + 1e-6)
  np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5)
  layers = [layer, tool.Layer('decoder 0', coefficients, z)]
  figure = tool.draw(activation, layers, 'title')
  panel = next(ax for ax in figure.axes if ax.get_title() == 'encoder 0')
  median, start = panel.lines
  assert not np.allclose(median.get_ydata(), start.get_ydata())
  assert any(
    isinstance(shape, matplotlib.collections.PolyCollection)
    for shape in panel.collections
  )
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert 'learned (median over rows)' in texts


def test_a_fixed_function_is_one_line(tools):
  tool = tools['activations']
  model = _small('swish')
  layers = tool.observe(
    model, _shaken(model), [_batch(np.random.default_rng(3))]
  )
  activation = activations.get('swish')
  drawn = tool.draw(activation, layers, 'title')
  panels = [ax for ax in drawn.axes if ax.get_title()]
  assert len(panels) == 5
  for panel in panels:
    (line,) = panel.lines
    x = line.get_xdata()
    np.testing.assert_allclose(line.get_ydata(), x / (1 + np.exp(-x)), 1e-4)
  assert 'no coefficients' in drawn.legends[0].get_texts()[0].get_text()
  assert 'swish has no coefficients' in tool.summary(activation, layers)


def test_a_checkpoint_of_another_model_is_refused(tools, activation_run):
  folder, model, *_ = activation_run
  for change in ({'mlp_dim': 24}, {'num_decoder_layers': 3}):
    config = dataclasses.replace(model.config, **change)
    other = network.Transformer(config)
    with pytest.raises(errors.UserError, match='not a checkpoint of this'):
      tools['activations'].read_params(str(folder), other)
  step, params = tools['activations'].read_params(str(folder), model)
  assert step == 10
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
