"""A run directory as text: its settings, its variant's name, its size.

Neither gin nor jax is imported, so that a table of many runs is quick and
needs nothing of what the runs needed. What else a run wrote: `records.read`.
"""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping

from etils import epath

from t5x_variants import errors, paths
from t5x_variants.run_dir import renamed

# As the papers write them.
_GATED = {
  'sigmoid': 'GLU',
  'linear': 'Bilinear',
  'relu': 'ReGLU',
  'gelu': 'GEGLU',
  'swish': 'SwiGLU',
}
_NAMES = {
  'relu': 'ReLU',
  'gelu': 'GELU',
  'swish': 'Swish',
  'squared_relu': 'Squared ReLU',
  'xielu': 'xIELU',
  'rational': 'Rational',
  'polyrelu': 'PolyReLU',
  'polynorm': 'PolyNorm',
}
# The order in which tables and colours go through the variants.
VARIANTS = (
  'ReLU',
  'GELU',
  'Swish',
  'Squared ReLU',
  'xIELU',
  'GLU',
  'Bilinear',
  'ReGLU',
  'GEGLU',
  'SwiGLU',
  'Rational',
  'Rational GLU',
  'PolyReLU',
  'PolyNorm',
  'PolyNorm GLU',
)


def settings(run: str | os.PathLike) -> dict[str, str]:
  """The bindings of config.gin as text, macros by bare name; {} without it.

  Raises:
    errors.UserError: it is there and cannot be read, or is no text.
  """
  path = pathlib.Path(run) / 'config.gin'
  if not path.exists():
    return {}
  try:
    return parsed(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'The file {path} cannot be read: {errors.reason(error)}.'
    ) from error


def parsed(text: str) -> dict[str, str]:
  """The bindings of an operative configuration, macros by bare name.

  Those of an earlier version have the names of today, see `renamed`.
  """
  text = renamed.updated(text)
  # A value that needs more than a line goes on indented, after a backslash.
  text = re.sub(r'\s*\\?\n[ \t]+', ' ', text)
  found = re.findall(r'^([\w./]+) = (.*)$', text, re.MULTILINE)
  return {name: value.strip() for name, value in found}


def resolved(bindings: Mapping[str, str], name: str) -> str | None:
  """A binding's text; of one that refers to a macro (`%X`), the macro's."""
  seen = set()
  while (value := bindings.get(name, '')).startswith('%') and name not in seen:
    seen.add(name)
    name = value.removeprefix('%')
  return value or None


def variant(bindings: Mapping[str, str]) -> str | None:
  """The variant's name from ACTIVATION and GATED: 'SwiGLU'; None if unset.

  Args:
    bindings: see `settings`.

  Returns:
    The papers' name where there is one, else the activation's own, with
    ' GLU' behind it when gated.
  """
  activation, gated = bindings.get('ACTIVATION'), bindings.get('GATED')
  if activation is None or gated not in ('True', 'False'):
    return None
  # 'swish', or a maker such as @rational.rational().
  own = re.fullmatch(r'@?(?:[\w/]+\.)*(\w+)(?:\(\))?', activation.strip('\'"'))
  if own is None:
    return None
  name = own[1]
  if gated == 'True':
    return _GATED.get(name) or f'{_NAMES.get(name, name)} GLU'
  return _NAMES.get(name, name)


def parameters(run: str | os.PathLike) -> int | None:
  """The number of parameters model-info.txt gives; None without it."""
  path = pathlib.Path(run) / 'model-info.txt'
  if not path.exists():
    return None
  total = re.search(
    r'^([\d,]+) parameters', path.read_text(encoding='utf-8'), re.MULTILINE
  )
  return int(total[1].replace(',', '')) if total else None


def newest_checkpoint(run: str | os.PathLike) -> tuple[int, pathlib.Path]:
  """The step and folder of the newest whole checkpoint.

  Only looks: opening a run's checkpoints for writing would tidy away what a
  run that is still going on has half written.

  Raises:
    errors.UserError: there is none yet.
  """
  folder = pathlib.Path(run).absolute() / 'checkpoints'
  steps = [
    int(entry.name)
    for entry in (folder.iterdir() if folder.is_dir() else ())
    if entry.name.isdigit()
  ]
  if not steps:
    raise errors.UserError(
      f'{run} has no checkpoint yet: one is written every CHECKPOINT_PERIOD '
      'steps and at the end of a run.'
    )
  return max(steps), folder / str(max(steps))


def check_folder(model_dir: str) -> None:
  """Refuses what is no path of a folder that a run can be written to.

  Raises:
    errors.UserError: no path, or other storage than gs://.
  """
  if not isinstance(model_dir, str) or not model_dir:
    raise errors.UserError(
      f'MODEL_DIR is {model_dir!r}; it must be the path of a folder, quoted: '
      '--gin.MODEL_DIR="\'runs/mine\'".'
    )
  if '://' in model_dir.removeprefix('gs://'):
    raise errors.UserError(
      f'MODEL_DIR {model_dir} is on remote storage of a kind that cannot be '
      'written to; use gs:// or a local folder.'
    )


def make_folder(model_dir: str) -> pathlib.Path | epath.Path:
  """Makes MODEL_DIR if absent and tries to write to it; its absolute path.

  Raises:
    errors.UserError: see `check_folder`, or it is not writable.
  """
  check_folder(model_dir)
  folder = paths.folder(model_dir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # A name of its own: other hosts look at the same time.
    probe = folder / f'.writable-{secrets.token_hex(8)}'
    probe.touch()
    probe.unlink()
  except Exception as error:
    # TensorFlow, which reaches buckets, has exceptions of its own.
    if isinstance(error, OSError) or paths.is_remote(model_dir):
      raise errors.UserError(
        f'MODEL_DIR {model_dir} cannot be written to: '
        f'{errors.reason(error)}. Choose a folder you may write to.'
      ) from error
    raise
  return folder


def write_text(path: pathlib.Path | epath.Path, text: str) -> None:
  """Writes a file of a run directory as a whole or not at all.

  Raises:
    errors.UserError: it cannot be written; what was there is kept.
  """
  try:
    paths.write(path, text)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written: {errors.reason(error)}. The checkpoints are '
      'intact; make room, then start the same command again.'
    ) from error


@contextlib.contextmanager
def removed_if_unused(model_dir: str) -> Iterator[None]:
  """Leaves no empty folder behind when a run is refused.

  Args:
    model_dir: MODEL_DIR. Where a `UserError` ends what is inside this context,
      the folders that were made for it are removed again, unless there is a
      file in them.
  """
  if paths.is_remote(model_dir):
    yield
    return
  folder = paths.folder(model_dir)
  wanted = (folder / 'checkpoints', folder, *folder.parents)
  made = [path for path in wanted if not path.exists()]
  try:
    yield
  except errors.UserError:
    if made and not any(p.is_file() for p in made[-1].rglob('*')):
      shutil.rmtree(made[-1], ignore_errors=True)
    raise
