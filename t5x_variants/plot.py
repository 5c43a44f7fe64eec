"""Draws the loss of runs, or what each layer's activation became.

  python -m t5x_variants.plot loss runs/relu runs/swiglu* -o loss.png
  python -m t5x_variants.plot activations runs/rational -o activations.png

`loss` takes run directories, or folders that contain some. It draws one line
for each variant: the mean held-out loss over its runs, which differ in
RANDOM_SEED, in a band of one standard deviation to either side. Runs that
differ in any other setting get lines of their own, and the setting is named. A
table of the last losses goes to stdout. It reads config.gin, metrics.jsonl and
model-info.txt, and a run that is still going on may be drawn too. Training
time is the sum of the steps' own times (seconds_per_step): compilation,
evaluation, checkpoints and the time between a stop and a restart are left out.

`activations` takes one run directory. It draws one panel for each layer of the
encoder and of the decoder: the learned function (solid), the function it
started as (dashed) and, in grey and on a scale of its own, a histogram of the
pre-activations z that the layer computes on the run's held-out data, without
padding. The x axis goes from the 0.1 % to the 99.9 % quantile of z. A table of
coefficients and ranges goes to stdout. A row-wise activation (PolyNorm) has no
graph, since its value depends on the whole row. Its panel shows the value at z
where z is one more entry of a row that the layer has seen: the median over 32
such rows (solid) and 5 to 95 % of them (band). It reads config.gin and the
newest checkpoint, and runs on a CPU unless JAX_PLATFORMS names another device.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags

from t5x_variants import errors
from t5x_variants.cli import gin_utils

# The flags that only one of the pictures has.
_OWN = {'train': 'loss', 'whole': 'loss', 'batches': 'activations'}

flags.DEFINE_string(
  'output',
  None,
  'The picture: .png, .pdf, .svg and others. Without it, loss.png or '
  'activations.png.',
  short_name='o',
)
flags.DEFINE_bool('train', False, 'loss: the training loss too, thin and pale.')
flags.DEFINE_bool(
  'whole',
  False,
  'loss: the whole range of losses, not only that after the first quarter.',
)
flags.DEFINE_integer(
  'batches',
  2,
  'activations: batches of held-out data, 8 rows each.',
  lower_bound=1,
)
FLAGS = flags.FLAGS


def main(arguments: Sequence[str]) -> None:
  """Draws the picture that the first argument names."""
  from t5x_variants import logs
  from t5x_variants.analysis import plots

  logs.quiet()
  kind, *runs = arguments
  _check(kind, runs)
  output = plots.check_output(FLAGS.output or f'{kind}.png')
  if kind == 'activations':
    _draw_activations(runs[0], output)
    return
  from t5x_variants.analysis import loss_plot

  loss_plot.plot(runs, output, with_training=FLAGS.train, whole=FLAGS.whole)


def _check(kind: str, runs: Sequence[str]) -> None:
  """Refuses arguments that do not go together."""
  if kind not in _OWN.values():
    raise errors.UserError(
      f'{kind!r} is no picture. Write python -m t5x_variants.plot loss RUN ... '
      'or python -m t5x_variants.plot activations RUN.'
    )
  if not runs or (kind == 'activations' and len(runs) > 1):
    many = (
      'at least one run directory' if kind == 'loss' else 'one run directory'
    )
    raise errors.UserError(
      f'plot {kind} takes {many}, RUN; {len(runs)} were given.'
    )
  for name, owner in _OWN.items():
    if FLAGS[name].present and owner != kind:
      raise errors.UserError(f'--{name} is for plot {owner}, not plot {kind}.')


def _draw_activations(run: str, output: pathlib.Path) -> None:
  """Reads the run's model and data as its config.gin has them."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  import gin

  from t5x_variants.analysis import activation_plot
  from t5x_variants.data import config as data_config
  from t5x_variants.run_dir import layout

  folder = pathlib.Path(run).absolute()
  if not (folder / 'config.gin').exists():
    raise errors.UserError(f'{run} is no run directory: it has no config.gin.')
  layout.newest_checkpoint(run)
  model, _ = gin_utils.read_model([str(folder / 'config.gin')])
  with gin.config_scope('eval'):
    try:
      held_out = gin_utils.configured(data_config.DatasetConfig)()
    except TypeError as error:
      raise errors.UserError(
        f'{run} has no held-out data (eval/DatasetConfig in its config.gin), '
        'so there is nothing to show its activations.'
      ) from error
  activation_plot.plot(folder, model, held_out, FLAGS.batches, output)


if __name__ == '__main__':
  gin_utils.run(main, takes='loss RUN ... or activations RUN')
