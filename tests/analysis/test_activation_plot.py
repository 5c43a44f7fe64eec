"""The picture of activations: what it shows is what the layers compute."""

import dataclasses
import pathlib

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import matplotlib.collections
import numpy as np
import pytest
from configs import t5_config

from t5x_variants import activations, errors
from t5x_variants.analysis import activation_plot
from t5x_variants.cli import gin_utils
from t5x_variants.data import config as data_config
from t5x_variants.model import network
from t5x_variants.training import checkpoints

_TOKENS = ('encoder_input', 'decoder_input', 'decoder_target')


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
    held_out = gin_utils.configured(data_config.DatasetConfig)()
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
  return folder, model, params, held_out


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


def test_curves_and_histograms_of_a_run(activation_run, tmp_path, capsys):
  folder, model, params, held_out = activation_run
  drawn = activation_plot.plot(folder, model, held_out, 1, tmp_path / 'a.png')
  out = capsys.readouterr().out
  batch = {
    name: value[: activation_plot.ROWS]
    for name, value in next(held_out.open()).items()
  }
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
    (bars,) = panel.patches
    heights, edges = bars.get_data()[:2]
    expected = np.histogram(z, edges)[0]
    assert expected.sum() >= 0.997 * z.size
    # A value on an edge may fall to either side of it.
    shares = heights / heights.sum() - expected / expected.sum()
    assert np.abs(shares).sum() <= 1e-3
    # Its scale is the panel's height, whatever the curves' is.
    assert heights.max() == pytest.approx(0.95)
    np.testing.assert_allclose(
      bars.get_transform().transform((panel.get_xlim()[0], 1)),
      (panel.bbox.x0, panel.bbox.y1),
      rtol=1e-5,
    )
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert f'{np.mean(np.abs(z) > 3):.2%}' in row
    numbers = [f'{v:.5g}' for v in mlp['activation']['numerator']]
    assert all(number in out for number in numbers)
  assert 'Rational at step 10 ' in _legend_title(drawn)


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
def test_scanned_and_unrolled_show_the_same(gated):
  rng = np.random.default_rng(1)
  batches = [_batch(rng), _batch(rng)]
  unrolled = _small('rational', gated=gated)
  scanned = _small(
    'rational', gated=gated, scan_layers=True, remat_policy='minimal'
  )
  params = _shaken(unrolled)
  one = activation_plot.observe(unrolled, params, batches)
  other = activation_plot.observe(
    scanned, network.stack_layers(params), batches
  )
  names = ['encoder 0', 'encoder 1', 'decoder 0', 'decoder 1', 'decoder 2']
  assert [layer.name for layer in one] == names
  # Padding is left out: 2 of 24 tokens twice, 3 of 24 twice.
  assert one[0].z.shape == (20, 12) and one[2].z.shape == (18, 12)
  for a, b in zip(one, other, strict=True):
    assert a.name == b.name
    np.testing.assert_allclose(a.z, b.z, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, a.coefficients, b.coefficients)


def test_polynorm_is_drawn_in_rows_that_were_seen():
  tool = activation_plot
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


def test_a_fixed_function_is_one_line():
  tool = activation_plot
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


def test_a_checkpoint_of_another_model_is_refused(activation_run):
  folder, model, *_ = activation_run
  for change in ({'mlp_dim': 24}, {'num_decoder_layers': 3}):
    config = dataclasses.replace(model.config, **change)
    other = network.Transformer(config)
    with pytest.raises(errors.UserError, match='not a checkpoint of this'):
      activation_plot.read_params(folder, other)
  step, params = activation_plot.read_params(folder, model)
  assert step == 10
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
