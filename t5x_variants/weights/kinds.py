"""Which program wrote a folder of weights, and errors for a wrong one."""

import os
import pathlib

from t5x_variants import errors, paths
from t5x_variants.weights import files

OURS, T5X, HUGGING_FACE = 't5x_variants', 't5x', 'Hugging Face transformers'
_FORMS = {
  OURS: 'a run directory, one of its checkpoints (RUN/checkpoints/STEP), or '
  'what import_weights wrote',
  T5X: 'a folder such as .../checkpoint_1000000, in which there are a file '
  "'checkpoint' and a folder for each tensor, or a folder 'state'",
  HUGGING_FACE: 'a local folder with config.json as transformers saves it, '
  'for example by hf download NAME --local-dir FOLDER',
}


def kind_of(path: pathlib.Path) -> str | None:
  """Which program wrote a folder, or a file in it; None where that is open."""
  if path.is_file():
    path = path.parent
  if (path / 'config.json').is_file():
    return HUGGING_FACE
  if (path / 'checkpoints').is_dir():
    return OURS
  if (path / 'state').is_dir():
    return OURS if path.name.isdecimal() else T5X
  if (path / 'checkpoint').is_file() or any(path.glob('checkpoint_*/')):
    return T5X
  if any(path.glob('*.safetensors')):
    return HUGGING_FACE
  return None


def missing(path: str | os.PathLike, *wanted: str) -> errors.UserError:
  """The error of a path that holds no checkpoint of the kinds wanted."""
  with files.reading(path):
    exists = os.path.lexists(os.path.expanduser(path))
  why = '' if exists else ' because it does not exist'
  return errors.UserError(
    f'The path {path} holds no checkpoint of {" or ".join(wanted)}{why}: give '
    f'{"; or ".join(_FORMS[kind] for kind in wanted)}.'
  )


def not_ours(path: str | os.PathLike) -> errors.UserError:
  """The error of a path that holds no checkpoint of this package."""
  local = paths.folder(path)
  with files.reading(path):
    kind = kind_of(local)
    folder = local.parent if local.is_file() else local
  if kind in (None, OURS):
    return missing(path, OURS)
  return errors.UserError(
    f'The path {path} holds weights of {kind}, not of {OURS}: import them by '
    'python -m t5x_variants.import_weights --gin_file=gin/models/X.gin '
    f'--gin_file=gin/variants/Y.gin --checkpoint={folder} --output=DIR, and '
    'give DIR here.'
  )
