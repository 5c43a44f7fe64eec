"""A corpus for which nothing is downloaded: Python's own documentation.

About 2 MB of English technical prose: the help topics (`pydoc_data.topics`)
and the docstrings of the standard library, read out of its source by `ast`
and never by importing it. It is built once for a version of Python and kept
as JSON lines in the user's cache folder.
"""

import ast
import json
import logging
import os
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator

from t5x_variants import errors, paths

_log = logging.getLogger('t5x_variants')
# Raise it when the rules below change: other documents, other cache file.
BUILDER_VERSION = 1
# Characters. Shorter docstrings ('Return self.') are hardly prose.
SHORTEST = 100
_NO_PROSE = frozenset(
  '__pycache__ site-packages dist-packages test tests idlelib lib2to3'.split()
)
_DOCUMENTED = (
  ast.Module,
  ast.ClassDef,
  ast.FunctionDef,
  ast.AsyncFunctionDef,
)


def _topics() -> Iterator[str]:
  try:
    from pydoc_data.topics import topics
  except ImportError:  # Some distributions ship it apart.
    return
  for name in sorted(topics):
    yield topics[name]


def docstrings() -> Iterator[tuple[str, str, str]]:
  """Every docstring of the standard library, in an order that never changes.

  Yields:
    The module that holds it (`email.message`), the name of what it documents
    (that of the file's stem for a module) and the docstring, not stripped and
    possibly empty.
  """
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for directory, folders, files in os.walk(root):
    folders[:] = sorted(set(folders) - _NO_PROSE)
    for file in sorted(files):
      if not file.endswith('.py'):
        continue
      try:
        source = pathlib.Path(directory, file).read_bytes()
        tree = ast.parse(source)
      except (OSError, SyntaxError, ValueError):
        continue  # Unreadable to us, or broken on purpose.
      path = pathlib.Path(directory, file).relative_to(root).with_suffix('')
      module = '.'.join(path.parts).removesuffix('.__init__')
      for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
          name = getattr(node, 'name', path.name)
          yield module, name, ast.get_docstring(node) or ''


def documents() -> list[str]:
  """Every help topic and docstring once, in an order that never changes."""
  texts = [*_topics(), *(text for _, _, text in docstrings())]
  texts = [text.strip() for text in texts]
  texts = [text for text in texts if len(text) >= SHORTEST]
  return list(dict.fromkeys(texts))


def cache_folder() -> pathlib.Path:
  """The user's cache folder for this project."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 't5x_variants'


def edition(version: int) -> str:
  """What distinguishes files that are made of the library's text.

  Args:
    version: of the rules that they are made by.
  """
  implementation = sys.implementation.name
  return f'{implementation}-{platform.python_version()}-v{version}'


def cached(name: str, build: Callable[[], Iterable[str]]) -> str:
  """A file of the cache folder, built where there is none yet.

  Args:
    name: of the file, with its `edition`.
    build: its text in parts.

  Returns:
    Its path.

  Raises:
    errors.UserError: the cache folder cannot be written.
  """
  path = cache_folder() / name
  if path.exists():
    return str(path)
  _log.info('building %s', path)
  text = ''.join(build())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # As a whole or not at all: many processes may build it at once.
    paths.write(path, text)
  except OSError as error:
    raise not_kept(path.parent, error) from error
  return str(path)


def cached_file() -> str:
  """The corpus as a file of JSON lines, built where there is none yet."""

  def lines() -> Iterator[str]:
    texts = documents()
    if not texts:
      raise errors.UserError(
        'This Python has neither help topics nor library sources to read: use'
        ' your own text (gin/data/text_files.gin).'
      )
    return (json.dumps({'text': t}, ensure_ascii=False) + '\n' for t in texts)

  return cached(f'embedded-{edition(BUILDER_VERSION)}.jsonl', lines)


def not_kept(folder: pathlib.Path, error: OSError) -> errors.UserError:
  """The sentence for a cache folder that cannot be written."""
  return errors.UserError(
    f'The embedded corpus cannot be kept in {folder}'
    f' ({errors.reason(error)}): set XDG_CACHE_HOME to a folder that can be'
    ' written.'
  )
