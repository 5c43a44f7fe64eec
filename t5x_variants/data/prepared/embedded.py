"""The embedded corpus as prepared data, made where it is not yet."""

import contextlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from t5x_variants import errors
from t5x_variants.data.base import positions
from t5x_variants.data.prepared import format, info
from t5x_variants.data.text import embedded

_log = logging.getLogger('t5x_variants')


def prepared(task_feature_lengths: Mapping[str, int] | None = None) -> str:
  """The folder of this corpus as prepared data, written where it is not yet.

  It lies in the user's cache folder and is prepared by a process of its own,
  so that this one stays without TensorFlow.

  Args:
    task_feature_lengths: of inputs and targets; None: gin/data/embedded.gin's.

  Returns:
    The folder.
  """
  if task_feature_lengths is None:
    task_feature_lengths = {'inputs': 256, 'targets': 64}
  lengths = positions.feature_lengths(task_feature_lengths)
  sizes = 'x'.join(str(lengths[name]) for name in ('inputs', 'targets'))
  name = f'embedded-{embedded.edition(embedded.BUILDER_VERSION)}'
  name += f'-prepared{info.FORMAT}-{sizes}'
  folder = embedded.cache_folder() / name
  if (folder / format.INFO).exists():
    return str(folder)
  _log.info('preparing the embedded corpus in %s, once', folder)
  temporary = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Under its name when it is whole, or not at all: many may do this at once.
    temporary = tempfile.mkdtemp(dir=folder.parent, prefix=f'{name}-')
    _prepare_into(temporary, lengths)
    with contextlib.suppress(OSError):  # Another process was first.
      os.rename(temporary, folder)
    if not (folder / format.INFO).exists():
      raise errors.UserError(f'The folder {folder} is in the way: remove it.')
  except OSError as error:
    raise embedded.not_kept(folder.parent, error) from error
  finally:
    if temporary:
      shutil.rmtree(temporary, ignore_errors=True)
  return str(folder)


def _prepare_into(folder: str, lengths: Mapping[str, int]) -> None:
  command = [sys.executable, '-m', 't5x_variants.prepare_data']
  command += ['--gin_file=gin/data/embedded.gin', f'--output={folder}']
  command += [f'--gin.TASK_FEATURE_LENGTHS={lengths!r}']
  root = str(pathlib.Path(__file__).parents[3])
  path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
  done = subprocess.run(
    command,
    env=os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
    stderr=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    why = lines[-1].removeprefix('error: ').rstrip('.')
    raise errors.UserError(f'The embedded corpus could not be prepared: {why}.')
