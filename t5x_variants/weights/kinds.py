"""Which program wrote a folder of weights, for who gives the wrong one."""

import os
import pathlib

from t5x_variants import errors
from t5x_variants.weights import files

OURS, T5X, HUGGING_FACE = 't5x_variants', 't5x', 'Hugging Face transformers'
_COMMANDS = {T5X: 'import_t5x', HUGGING_FACE: 'import_hf'}
_WANTED = {
  OURS: 'a run directory, one of its checkpoints (RUN/checkpoints/STEP), or '
  'what import_t5x or import_hf wrote',
  T5X: 'a folder such as .../checkpoint_1000000, in which there are a file '
  "'checkpoint' and a folder for each tensor, or a folder 'state'",
  HUGGING_FACE: 'a local folder with config.json as transformers saves it, '
  'for example by hf download NAME --local-dir FOLDER',
}


def kind_of(path: pathlib.Path) -> str | None:
  """Which program wrote a folder, or a file in it; None where that is open."""
  if path.is_file():
    path = path.parent
  if (path / 'checkpoints').is_dir():
    return OURS
  if (path / 'state').is_dir():
    return OURS if path.name.isdecimal() else T5X
  if (path / 'checkpoint').is_file() or any(path.glob('checkpoint_*/')):
    return T5X
  if (path / 'config.json').exists() or any(path.glob('*.safetensors')):
    return HUGGING_FACE
  return None


def mistaken(path: str | os.PathLike, wanted: str) -> errors.UserError:
  """The error of a path that holds no checkpoint of the kind that is wanted.

  Args:
    path: what was given.
    wanted: `OURS`, `T5X` or `HUGGING_FACE`.
  """
  local = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
  with files.reading(path):
    found = kind_of(local)
    there = local.exists()
    folder = local.parent if local.is_file() else local
  if found in (None, wanted):
    why = '' if there else ' because it does not exist'
    return errors.UserError(
      f'The path {path} holds no checkpoint of {wanted}{why}: give '
      f'{_WANTED[wanted]}.'
    )
  what = f'The path {path} holds weights of {found}, not of {wanted}'
  if found == OURS:
    return errors.UserError(
      f'{what}, so that they need no import: give them to a run by '
      f'--gin.INITIAL_CHECKPOINT_PATH="\'{folder}\'".'
    )
  return errors.UserError(
    f'{what}: import them by python -m t5x_variants.{_COMMANDS[found]} '
    '--gin_file=gin/models/X.gin --gin_file=gin/variants/Y.gin '
    f'--checkpoint={folder} --output=DIR'
    + (', and give DIR here.' if wanted == OURS else '.')
  )
