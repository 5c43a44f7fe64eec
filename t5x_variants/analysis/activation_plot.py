"""What each layer's activation became, over what it was given.

One panel for each layer of the encoder and of the decoder: the learned
function, the function it started as, and a histogram of the pre-activations
that the layer computes, padding left out.

A row-wise activation (PolyNorm) has no graph, since its value depends on the
whole row. Its panel shows the value at z where z is one more entry of a row
that the layer has seen.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from t5x_variants import activations
from t5x_variants.analysis import pages, plots
from t5x_variants.data import config as data_config
from t5x_variants.model import network, parameters
from t5x_variants.run_dir import layout
from t5x_variants.weights import matching, saved

ROWS = 8  # held-out rows in one batch: bounds the memory
TYPICAL = 32  # rows over which a row-wise activation is drawn
POINTS = 301  # of a curve
BINS = 80
FAR = (3.0, 8.0)  # the published and our own fits of rationals end there
_LEARNED = plots.COLOURS[0]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer's activation.

  Attributes:
    name: such as 'encoder 0'; the layer's parameters are in
      encoder/layers_0.
    coefficients: now, {} when there are none.
    z: pre-activations, one row a token, [N, F].
  """

  name: str
  coefficients: Mapping[str, np.ndarray]
  z: np.ndarray


def plot(
  run: pathlib.Path,
  model: network.Transformer,
  held_out: data_config.DatasetConfig,
  batches: int,
  output: pathlib.Path,
):
  """Prints the table of a run's layers, writes their picture, and returns it.

  Args:
    run: the run directory, of which the newest checkpoint is read.
    model: the run's.
    held_out: the data that is shown to it, `ROWS` rows in a batch at most.
    batches: how many of them.
    output: see `plots.check_output`.

  Raises:
    errors.UserError: the checkpoint or the data cannot be read.
  """
  step, params = read_params(run, model)
  held_out = dataclasses.replace(
    held_out, batch_size=min(ROWS, held_out.batch_size)
  )
  layers = observe(
    model, params, list(itertools.islice(held_out.open(), batches))
  )
  activation = model.config.feed_forward.activation
  print(summary(activation, layers))
  name = layout.variant(layout.settings(run)) or activation.name
  drawn = draw(activation, layers, f'{name} at step {step:,} ({run.name})')
  plots.save(drawn, output)
  return drawn


def read_params(
  run: pathlib.Path, model: network.Transformer
) -> tuple[int, dict[str, Any]]:
  """The step and the parameters, as numpy, of the newest checkpoint."""
  found = saved.open_checkpoint(run)
  shapes, _ = parameters.shapes_and_axes(model)
  suggestion = 'Its config.gin was not written by the same run.'
  return found.step, dict(matching.exact(found, shapes, suggestion))


def observe(
  model: network.Transformer,
  params: dict[str, Any],
  batches: list[Mapping[str, np.ndarray]],
) -> list[Layer]:
  """Applies the model and notes every layer's pre-activations."""

  @jax.jit
  def preactivations(batch):
    _, seen = model.apply(
      {'params': params},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      encoder_segment_ids=batch.get('encoder_segment_ids'),
      decoder_segment_ids=batch.get('decoder_segment_ids'),
      enable_dropout=False,
      mutable=['intermediates'],
    )
    return unfreeze(seen['intermediates'])

  each = [jax.device_get(preactivations(batch)) for batch in batches]
  if model.config.scan_layers:
    params = network.unstack_layers(params)
    each = [network.unstack_layers(seen) for seen in each]
  config, layers = model.config, []
  for stack, count, tokens in (
    ('encoder', config.num_encoder_layers, 'encoder_input_tokens'),
    ('decoder', config.num_decoder_layers, 'decoder_target_tokens'),
  ):
    for name in (f'layers_{i}' for i in range(count)):
      z = [
        np.asarray(seen[stack][name]['mlp']['preactivation'][0], np.float32)
        for seen in each
      ]
      real = [batch[tokens] > 0 for batch in batches]
      layers.append(
        Layer(
          f'{stack} {name.removeprefix("layers_")}',
          params[stack][name]['mlp'].get('activation', {}),
          np.concatenate([a[keep] for a, keep in zip(z, real, strict=True)]),
        )
      )
  return layers


def values(
  activation: activations.Activation,
  coefficients: Mapping[str, np.ndarray],
  x: np.ndarray,
  layer: Layer,
) -> np.ndarray:
  """What the activation makes of x: [1, X], or [rows, X] if it is row-wise."""
  if activation.kind == 'elementwise':
    return np.asarray(activation.fn(jnp.asarray(x), coefficients))[None]

  def of_row(row):
    rows = np.tile(np.append(row, np.float32(0)), (len(x), 1))
    rows[:, -1] = x
    return np.asarray(activation.fn(jnp.asarray(rows), coefficients))[:, -1]

  return np.stack([of_row(row) for row in typical_rows(layer.z)])


def typical_rows(z: np.ndarray) -> np.ndarray:
  """TYPICAL rows of [N, F], evenly spaced through the text."""
  return z[np.linspace(0, len(z) - 1, min(TYPICAL, len(z))).astype(int)]


def draw(activation: activations.Activation, layers: list[Layer], title: str):
  """The figure: the encoder's panels, and below them the decoder's."""
  stacks = [
    [layer for layer in layers if layer.name.startswith(stack)]
    for stack in ('encoder', 'decoder')
  ]
  most = max(map(len, stacks))
  columns = -(-most // -(-most // 6))
  depths = [-(-len(stack) // columns) for stack in stacks]
  drawn = plots.figure(max(5.0, 1.75 * columns + 0.3), 1.45 * sum(depths) + 0.9)
  grid = drawn.add_gridspec(sum(depths), columns)
  for stack, first in zip(stacks, (0, depths[0]), strict=True):
    for i, layer in enumerate(stack):
      ax = drawn.add_subplot(grid[first + i // columns, i % columns])
      _panel(ax, activation, layer)
  drawn.supxlabel('pre-activation z', fontsize=9)
  drawn.supylabel('act(z)', fontsize=9)
  drawn.legend(
    *ax.get_legend_handles_labels(),
    title=title,
    loc='outside upper center',
    ncols=2 if columns < 4 else 4,
    fontsize=8,
    title_fontsize=10,
  )
  return drawn


def _panel(ax, activation: activations.Activation, layer: Layer) -> None:
  """One layer's functions, over a histogram of what they are given."""
  low, high = np.quantile(layer.z, [0.001, 0.999])
  if high - low < 1e-6:
    low, high = low - 1.0, high + 1.0
  x = np.linspace(low, high, POINTS, dtype=np.float32)
  counts, edges = np.histogram(layer.z, BINS, (low, high))
  now = values(activation, layer.coefficients, x, layer)
  label = 'learned' if layer.coefficients else 'fixed: no coefficients'
  if len(now) > 1:
    band = np.quantile(now, [0.05, 0.95], axis=0)
    style = {'color': _LEARNED, 'alpha': 0.25, 'lw': 0}
    ax.fill_between(x, *band, label=f'{label} (5 to 95 % of rows)', **style)
    label += ' (median over rows)'
  ax.plot(x, np.median(now, 0), color=_LEARNED, lw=1.6, label=label)
  if layer.coefficients:
    start = np.median(values(activation, activation.init(), x, layer), 0)
    style = {'color': 'black', 'lw': 0.9, 'ls': (0, (4, 2))}
    ax.plot(x, start, label='at the start', **style)
  ax.stairs(
    # The x axis is the curves'; the y axis is the panel's height.
    0.95 * counts / counts.max(),
    edges,
    fill=True,
    color='0.82',
    label='z on held-out text (own scale)',
    transform=ax.get_xaxis_transform(),
    zorder=0,
  )
  ax.set_xlim(low, high)
  ax.set_title(layer.name, fontsize=8, pad=3)
  ax.tick_params(labelsize=7, length=2, pad=2)
  ax.locator_params(nbins=4)


def summary(activation: activations.Activation, layers: list[Layer]) -> str:
  """The table: where z lies, and the coefficients at the start and now."""
  far = (f'|z|>{bound:g}' for bound in FAR)
  rows = [('layer', *far, '0.1 %', 'median', '99.9 %')]
  for layer in layers:
    far = (f'{np.mean(np.abs(layer.z) > bound):.2%}' for bound in FAR)
    quantiles = np.quantile(layer.z, [0.001, 0.5, 0.999])
    rows.append((layer.name, *far, *(f'{q:.3f}' for q in quantiles)))
  parts = [pages.plain(rows)]
  for name, start in activation.init().items():
    lines = [(name, *map(str, range(len(start)))), ('start', *_digits(start))]
    lines += [(x.name, *_digits(x.coefficients[name])) for x in layers]
    parts.append(pages.plain(lines))
  if not activation.init():
    parts.append(f'{activation.name} has no coefficients: it stays as it is.')
  return '\n\n'.join(parts)


def _digits(vector: np.ndarray) -> list[str]:
  return [f'{value:.5g}' for value in vector]
