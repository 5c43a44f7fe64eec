"""What import_t5x and import_hf share: flags, and the way to an import."""

import sys
import time
from collections.abc import Callable

from absl import flags

from t5x_variants import errors
from t5x_variants.cli import gin_utils

FLAGS = flags.FLAGS
_CURE = (
  'Give the model and variant files it was made with. To start another '
  'variant from these weights, import them as they are, then train with '
  '--gin.INITIAL_CHECKPOINT_PATH and --gin.INITIAL_CHECKPOINT_PARTIAL=True.'
)


def define_flags(what: str) -> None:
  """Defines --checkpoint and --output."""
  flags.DEFINE_string('checkpoint', None, f'{what}.')
  flags.DEFINE_string(
    'output', None, 'The folder to write, which must not be there yet.'
  )


def run(open_checkpoint: Callable) -> None:
  """Imports what --checkpoint names into --output, as the flags say.

  Args:
    open_checkpoint: from a path, the `network.T5Config` of the model that
      should be there and the unrolled names of its parameters to a
      `weights.source.Source`.
  """
  from t5x_variants.model import parameters
  from t5x_variants.weights import fit, saved, source

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
  names = source.unrolled_shapes(fit.shapes_of(shapes))
  found = open_checkpoint(FLAGS.checkpoint, model.config, names)
  if FLAGS.dry_run:
    fit.check(found, shapes, _CURE)
    print(f'# {found.where} (step {found.step}) is of this model')
    return
  params = fit.exact(found, shapes, _CURE)
  saved.write(output, found.step, params, config)
  print(
    f'{parameters.count(shapes):,} parameters of {found.where} (step '
    f'{found.step}) written to {output} after '
    f'{time.perf_counter() - begun:.1f} s. Start a run from them with '
    f'--gin.INITIAL_CHECKPOINT_PATH="\'{output}\'".',
    file=sys.stderr,
  )
