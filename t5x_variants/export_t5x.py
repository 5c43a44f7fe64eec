r"""To google-research/t5x: `python -m t5x_variants.export_t5x`.

  python -m t5x_variants.export_t5x --run=runs/swiglu --output=to_t5x/swiglu

Writes a run's newest checkpoint as to_t5x/swiglu/checkpoint_STEP, in the format
of t5x's own checkpoints, and a config.gin that describes the model. t5x trains
on from it with gin/t5x/finetune.gin:

  --gin.INITIAL_CHECKPOINT_PATH="'to_t5x/swiglu/checkpoint_STEP'"

The weights and the step are written. The optimizer's state and the position in
the data are not: t5x starts them anew (docs/from_t5x.md). Scanned layers stay
scanned; --gin.SCAN_LAYERS=False writes them one by one. The export does not
need t5x.
"""

from absl import flags

from t5x_variants.cli import exporting, gin_utils

exporting.define_flags()
gin_utils.define_flags()
FLAGS = flags.FLAGS


def main() -> None:
  """Reads a run, checks that it is of the model described, then writes."""
  from t5x_variants import logs
  from t5x_variants.model import parameters
  from t5x_variants.weights import matching, saved, to_t5x

  logs.quiet()
  found, output = exporting.open_run()
  model, config = exporting.model_of(found)
  exporting.check(found, model)
  if FLAGS.dry_run:
    print(config)
    return
  shapes, axes = parameters.shapes_and_axes(model)
  params = matching.exact(found, shapes, exporting.SUGGESTION)

  def write(folder) -> None:
    (folder / 'config.gin').write_text(config, encoding='utf-8')
    to_t5x.write(folder, found.step, params, axes)

  saved.write_folder(output, write)
  checkpoint = output / f'checkpoint_{found.step}'
  logs.say(f'{found.where} written to {checkpoint}.')
  logs.say(
    'To train on from it under t5x, give --gin_file=gin/t5x/finetune.gin '
    f'--gin.INITIAL_CHECKPOINT_PATH="\'{checkpoint}\'" and a TRAIN_STEPS above '
    f'{found.step}, which is its step.'
  )


if __name__ == '__main__':
  gin_utils.run(main)
