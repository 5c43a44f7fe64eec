"""Where the documents come from, as gin and the command line name it.

  embedded    prose in the running Python's own library, nothing to download
  text_files  your own files, plain or .gz
  json_lines  a JSON object a line, such as the shards of allenai/c4
  pairs       inputs and targets, a JSON object a line, to fine-tune on
  tfds        a dataset of TensorFlow Datasets, such as c4/en:3.1.0

What they have in common (splits, order, sharing among hosts) is in `sources`,
what a document is and what is skipped in `documents`.
"""

import os
from collections.abc import Sequence

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.text import documents as documents_lib
from t5x_variants.data.text import embedded as embedded_lib
from t5x_variants.data.text import sources


def expand(pattern, what: str) -> tuple[str, ...]:
  """The files that a glob, or several, match.

  Args:
    pattern: a glob or a list of them, local or on cloud storage.
    what: the pattern's name in an error.

  Returns:
    Paths, sorted, each once.

  Raises:
    errors.UserError: a pattern matches no file, is a folder, or is no text.
  """
  one = isinstance(pattern, str | os.PathLike)
  patterns = [pattern] if one else pattern
  if (
    not patterns
    or not isinstance(patterns, list | tuple)
    or not all(isinstance(each, str | os.PathLike) for each in patterns)
  ):
    raise errors.UserError(
      f'{what} is {pattern!r}; it must be a file, a glob or a list of them, in'
      ' quotes.'
    )
  files = set()
  for glob in map(os.fspath, patterns):
    try:
      path = os.path.expanduser(glob)
      if tf.io.gfile.isdir(path):
        raise errors.UserError(
          f'{what} is {glob!r}, which is a folder: name the files in it, such'
          f" as '{glob.rstrip('/')}/*.txt'."
        )
      found = tf.io.gfile.glob(path)
      found = [path for path in found if not os.path.isdir(path)]
    except tf.errors.OpError as error:
      raise errors.UserError(
        f'{what} is {glob!r}, which cannot be read: {errors.reason(error)}.'
      ) from error
    if not found:
      raise errors.UserError(
        f'{what} is {glob!r}, which matches no file: give an existing file or a'
        " glob such as '/data/*.txt', in quotes."
      )
    files.update(found)
  return tuple(sorted(files))


def _files_source(
  name,
  pattern,
  validation_pattern,
  validation_fraction,
  text_format,
  field,
  macros=('pattern', 'validation_pattern'),
):
  """A source of files; `macros` are the patterns' names in gin/data."""
  if not isinstance(validation_fraction, float | int) or not (
    0.0 < validation_fraction < 1.0
  ):
    raise errors.UserError(
      f'VALIDATION_FRACTION is {validation_fraction!r}; the share of documents'
      ' kept for validation must lie strictly between 0 and 1.'
    )
  files = {'train': expand(pattern, macros[0])}
  if validation_pattern is not None:
    files['validation'] = expand(validation_pattern, macros[1])
    if both := sorted(set(files['train']) & set(files['validation'])):
      raise errors.UserError(
        f'The file {both[0]!r} is matched by {macros[0]} and by {macros[1]}: it'
        ' can serve one of them.'
      )
  return sources.DocumentSource(
    files, text_format, field, validation_fraction, name
  )


def embedded(validation_fraction: float = 0.05) -> sources.DocumentSource:
  """Python's own documentation, built once into the user's cache folder."""
  path = embedded_lib.cached_file()
  return _files_source(
    'embedded', path, None, validation_fraction, 'json', 'text'
  )


def text_files(
  pattern: str | Sequence[str],
  validation_pattern: str | Sequence[str] | None = None,
  validation_fraction: float = 0.01,
  document: str = 'blank_line',
) -> sources.DocumentSource:
  """Your own text in UTF-8, plain or .gz.

  Args:
    pattern: a path or glob, or a list of them; gs:// works too.
    validation_pattern: files to validate on. None: a share of the documents.
    validation_fraction: that share.
    document: what a document is: 'blank_line' (between blank lines), 'line' or
      'file'. Documents over 64 KiB are cut at a line end.

  Returns:
    The data source.
  """
  formats = [text for text in documents_lib.FORMATS if text != 'json']
  if document not in formats:
    raise errors.UserError(
      f'DOCUMENT is {document!r}; choose one of {formats}.'
    )
  return _files_source(
    'text_files',
    pattern,
    validation_pattern,
    validation_fraction,
    document,
    '',
    ('TEXT_FILES', 'VALIDATION_FILES'),
  )


def json_lines(
  pattern: str | Sequence[str],
  validation_pattern: str | Sequence[str] | None = None,
  validation_fraction: float = 0.01,
  field: str = 'text',
) -> sources.DocumentSource:
  """Files with a JSON object a line, plain or .gz, as allenai/c4 has them.

  Args:
    pattern: a path or glob, or a list of them; gs:// works too.
    validation_pattern: files to validate on. None: a share of the documents.
    validation_fraction: that share.
    field: of the object, a string: the document.

  Returns:
    The data source.
  """
  return _files_source(
    'json_lines',
    pattern,
    validation_pattern,
    validation_fraction,
    'json',
    field,
    ('C4_JSON_TRAIN', 'C4_JSON_VALIDATION'),
  )


def pairs(
  pattern: str | Sequence[str],
  validation_pattern: str | Sequence[str] | None = None,
  validation_fraction: float = 0.1,
) -> sources.DocumentSource:
  """Inputs and targets: JSON lines with the strings `inputs` and `targets`.

  Args:
    pattern: a path or glob, or a list of them; gs:// works too.
    validation_pattern: files to validate on. None: a share of the pairs.
    validation_fraction: that share.

  Returns:
    The data source, for `tasks.text_to_text`.
  """
  return _files_source(
    'pairs',
    pattern,
    validation_pattern,
    validation_fraction,
    'json',
    ('inputs', 'targets'),
    ('PAIRS', 'VALIDATION_PAIRS'),
  )


def tfds(
  name: str,
  data_dir: str | None = None,
  field: str = 'text',
  download: bool = False,
) -> seqio.DataSource:
  """A dataset of TensorFlow Datasets with its own splits.

  Args:
    name: with config and version, such as 'c4/en:3.1.0'.
    data_dir: where it is prepared; None: TFDS's default folder.
    field: the feature that holds the text.
    download: whether TFDS may download and prepare what is missing.

  Returns:
    The data source; the dataset is looked up when it is first read.
  """
  if ':' not in name:
    raise errors.UserError(
      f'TFDS_NAME is {name!r}, which has no version: write it as in'
      ' c4/en:3.1.0, so that a run can be repeated.'
    )
  return sources.TfdsSource(name, data_dir, field, download)
