r"""Pretrains a T5: `python -m t5x_variants.train --gin_file=...`.

The four axes of a run are files: a model, a variant, data and the run itself:

  python -m t5x_variants.train \
    --gin_file=gin/models/tiny.gin --gin_file=gin/variants/swiglu.gin \
    --gin_file=gin/data/embedded.gin --gin_file=gin/runs/pretrain.gin \
    --gin.MODEL_DIR="'runs/swiglu'" --gin.TRAIN_STEPS=500
"""

import logging
import pathlib
import sys

import gin
from absl import flags
from absl import logging as absl_logging

from t5x_variants import gin_utils, train_state, trainer

gin_utils.define_flags()
# So that --help shows them.
flags.adopt_module_key_flags(gin_utils)
FLAGS = flags.FLAGS


def main() -> None:
  """Reads the gin files and trains, or with --dry_run tells what it would."""
  quiet_logs()
  gin_utils.parse(FLAGS.gin_file, FLAGS.gin_bindings, FLAGS.gin_search_paths)
  if FLAGS.dry_run:
    dry_run()
    return
  train = gin_utils.configured(trainer.train)

  def on_start(writer) -> None:
    text = gin.operative_config_str()
    writer.write_text('config', text)
    folder = pathlib.Path(gin_utils.macro('MODEL_DIR')).expanduser()
    (folder / 'config.gin').write_text(text, encoding='utf-8')

  train(on_start=on_start)


def dry_run() -> None:
  """Prints the configuration, the parameter count and the missing macros."""
  print(gin.config_str())
  if gin_utils.has_value('MODEL', 'ACTIVATION', 'GATED', 'DROPOUT_RATE'):
    shapes, _ = train_state.shapes_and_axes(gin_utils.macro('MODEL'))
    print(f'# {train_state.count(shapes):,} parameters')
  gin_utils.configured(trainer.train)
  print('# every macro has a value')


def quiet_logs() -> None:
  """Leaves our own lines and others' warnings, one line each."""
  # What fails in a library is said by the error it ends in, once.
  absl_logging.set_verbosity(absl_logging.FATAL)
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(levelname)s: %(message)s'))
  ours = logging.getLogger('t5x_variants')
  ours.addHandler(handler)
  ours.propagate = False
  ours.setLevel(logging.INFO)
  sys.unraisablehook = _unraisable


def _unraisable(unraisable) -> None:
  """Drops tensorstore's late answers to a read or write that has failed.

  Orbax has closed the event loop that asked by then; each array of a damaged
  checkpoint would print a traceback, after the sentence that says so.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


if __name__ == '__main__':
  gin_utils.run(main)
