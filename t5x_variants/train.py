r"""Trains a T5, from scratch or from a checkpoint.

The four axes of a run are files: a model, a variant, data and the run itself:

  python -m t5x_variants.train \
    --gin_file=gin/models/tiny.gin --gin_file=gin/variants/swiglu.gin \
    --gin_file=gin/data/embedded.gin --gin_file=gin/runs/pretrain.gin \
    --gin.MODEL_DIR="'runs/swiglu'" --gin.TRAIN_STEPS=500
"""

import gin
from absl import flags

from t5x_variants.cli import gin_utils, host_flags

gin_utils.define_flags()
host_flags.define_flags()
FLAGS = flags.FLAGS


def main() -> None:
  """Reads the gin files and trains, or with --dry_run tells what it would."""
  from t5x_variants import logs
  from t5x_variants.distributed import interrupts

  logs.quiet()
  interrupts.note()

  from t5x_variants.distributed import hosts

  gin_utils.parse(FLAGS.gin_file, FLAGS.gin_bindings, FLAGS.gin_search_paths)
  if FLAGS.dry_run:
    dry_run()
    return
  with hosts.joined(FLAGS):
    train()


def train() -> None:
  """Trains as the gin files say."""
  from t5x_variants.training import trainer

  gin_utils.configured(trainer.train)(operative_config=gin.operative_config_str)


def dry_run() -> None:
  """Prints the configuration and the parameter count, and checks the macros."""
  from t5x_variants.model import parameters
  from t5x_variants.training import trainer

  print(gin.config_str())
  if gin_utils.has_value('MODEL', 'ACTIVATION', 'GATED', 'DROPOUT_RATE'):
    shapes, _ = parameters.shapes_and_axes(gin_utils.macro('MODEL'))
    print(f'# {parameters.count(shapes):,} parameters')
  gin_utils.configured(trainer.train)
  print('# every macro has a value')


if __name__ == '__main__':
  gin_utils.run(main)
