r"""Imports weights of t5x or of Hugging Face transformers.

  python -m t5x_variants.import_weights \
    --gin_file=gin/models/t5_1_1_small.gin --gin_file=gin/variants/geglu.gin \
    --checkpoint=t5x/t5_1_1_small/checkpoint_1000000 \
    --output=imported/t5_1_1_small

The folder shows which program wrote it. A checkpoint_STEP of t5x is read from
a local folder or from gs://. A local folder of transformers holds config.json
and weights: safetensors in one file or in several, or pytorch_model.bin where
torch is installed. T5, T5 1.1, Flan-T5, ByT5 and what export_hf wrote fit.
Neither t5x nor transformers is needed.

The model and variant files say what must be in it; a tensor that is missing,
extra or of another shape is named, and nothing is written. The output holds
the weights, which must fit into memory, and no optimizer state. A new run
starts from it by --gin.INITIAL_CHECKPOINT_PATH, and export_hf takes it as
--run.

Public checkpoints of t5x are below gs://t5-data/pretrained_models/t5x.
"""

import time

from absl import flags

from t5x_variants import errors
from t5x_variants.cli import gin_utils

flags.DEFINE_string(
  'checkpoint',
  None,
  'checkpoint_STEP of t5x, in a local folder or on gs://, or a local folder of '
  'transformers.',
)
flags.DEFINE_string(
  'output', None, 'The folder to write, which must not be there yet.'
)
gin_utils.define_flags()
FLAGS = flags.FLAGS
_SUGGESTION = (
  'Give the model and variant files it was made with. To start another '
  'variant from these weights, import them as they are, then train with '
  '--gin.INITIAL_CHECKPOINT_PATH and --gin.INITIAL_CHECKPOINT_PARTIAL=True.'
)


def main() -> None:
  """Reads the gin files and the checkpoint, compares, then writes."""
  from t5x_variants import logs
  from t5x_variants.model import parameters
  from t5x_variants.weights import foreign, matching, saved

  logs.quiet()
  if not FLAGS.checkpoint:
    raise errors.UserError(
      'The flag --checkpoint=PATH is missing: it names the weights to read.'
    )
  output = saved.check_output(FLAGS.output)
  model, config = gin_utils.read_model(
    FLAGS.gin_file, FLAGS.gin_bindings, FLAGS.gin_search_paths
  )
  if FLAGS.dry_run:
    print(config)
  shapes, _ = parameters.shapes_and_axes(model)
  begun = time.perf_counter()
  found = foreign.open_checkpoint(FLAGS.checkpoint, model.config, shapes)
  if FLAGS.dry_run:
    matching.check(found, shapes, _SUGGESTION)
    print(f'# {found.where} (step {found.step}) is of this model')
    return
  params = matching.exact(found, shapes, _SUGGESTION)
  saved.write(output, found.step, params, config)
  logs.say(
    f'{parameters.count(shapes):,} parameters of {found.where} (step '
    f'{found.step}) written to {output} after '
    f'{time.perf_counter() - begun:.1f} s. Start a run from them with '
    f'--gin.INITIAL_CHECKPOINT_PATH="\'{output}\'".'
  )


if __name__ == '__main__':
  gin_utils.run(main)
