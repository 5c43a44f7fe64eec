"""What export_hf and export_t5x share: the flags and the model of a run.

JAX is imported when a run is opened: --help does not wait for it.
"""

import pathlib
import typing

from absl import flags

from t5x_variants import errors
from t5x_variants.cli import gin_utils

if typing.TYPE_CHECKING:
  from t5x_variants.model import network
  from t5x_variants.weights import source

FLAGS = flags.FLAGS
SUGGESTION = 'Give its model and variant files by --gin_file.'


def define_flags() -> None:
  """Defines --run and --output."""
  flags.DEFINE_string(
    'run',
    None,
    'A run directory, one of its checkpoints (RUN/checkpoints/STEP), or an '
    'import.',
  )
  flags.DEFINE_string(
    'output', None, 'The folder to write, which must not be there yet.'
  )


def open_run() -> 'tuple[source.Source, pathlib.Path]':
  """The checkpoint that --run names and the folder that --output names.

  Raises:
    errors.UserError: a flag is missing, --run holds no checkpoint, or --output
      exists already.
  """
  from t5x_variants.weights import saved

  if not FLAGS.run:
    raise errors.UserError(
      'The flag --run=DIR is missing: it names the run to export.'
    )
  output = saved.check_output(FLAGS.output)
  return saved.open_checkpoint(FLAGS.run), output


def model_of(found: 'source.Source') -> 'tuple[network.Transformer, str]':
  """The network that --gin_file or the run's own config.gin describes.

  Returns:
    The network and the text of its configuration.

  Raises:
    errors.UserError: the configuration is missing or cannot be read.
  """
  file = pathlib.Path(found.where).parent.parent / 'config.gin'
  if not FLAGS.gin_file and not file.is_file():
    raise errors.UserError(
      f'The file {file}, which describes the model, does not exist. '
      f'{SUGGESTION}'
    )
  try:
    return gin_utils.read_model(
      FLAGS.gin_file or [str(file)], FLAGS.gin_bindings, FLAGS.gin_search_paths
    )
  except errors.UserError as error:
    if FLAGS.gin_file:
      raise
    # An older version of this package may have written it.
    raise errors.UserError(f'{error} {SUGGESTION}') from error


def check(found: 'source.Source', model: 'network.Transformer') -> None:
  """Refuses a checkpoint of other parameters or of another variant.

  Raises:
    errors.UserError: they differ; the message says where.
  """
  from t5x_variants.model import parameters
  from t5x_variants.weights import matching

  shapes, _ = parameters.shapes_and_axes(model)
  matching.check(found, shapes, SUGGESTION)
  variant = matching.variant_of(model.config)
  if None not in (found.variant, variant) and found.variant != variant:
    raise errors.UserError(
      f'The folder {found.where} is a checkpoint of {found.variant}, the gin '
      f'files are of {variant}. {SUGGESTION}'
    )
