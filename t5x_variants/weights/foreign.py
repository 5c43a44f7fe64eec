"""Weights that another program wrote, whichever program that was."""

from collections.abc import Mapping

from t5x_variants import errors, paths
from t5x_variants.model import network
from t5x_variants.weights import (
  files,
  hugging_face,
  kinds,
  matching,
  source,
  t5x,
)


def open_checkpoint(
  path: str, config: network.T5Config, params: Mapping
) -> source.Source:
  """Looks into a checkpoint of t5x or a folder of transformers.

  Args:
    path: what `t5x.open_checkpoint` or `hugging_face.open_folder` takes, or a
      file in such a folder.
    config: the model that should be in it.
    params: that model's tree of shapes.

  Raises:
    errors.UserError: the weights are of neither program, their files are
      damaged, or they say that they are of another function.
  """
  if paths.is_remote(path):
    return t5x.open_checkpoint(path)
  local = paths.folder(path)
  with files.reading(path):
    kind = kinds.kind_of(local)
    folder = local.parent if local.is_file() else local
  if kind == kinds.T5X:
    return t5x.open_checkpoint(path)
  if kind == kinds.HUGGING_FACE:
    names = source.unrolled_shapes(matching.shapes_of(params))
    return hugging_face.open_folder(str(folder), config, names)
  if kind == kinds.OURS:
    raise errors.UserError(
      f'The path {path} holds weights of {kinds.OURS}, which need no import: '
      f'give them to a run by --gin.INITIAL_CHECKPOINT_PATH="\'{folder}\'".'
    )
  raise kinds.missing(path, kinds.T5X, kinds.HUGGING_FACE)
