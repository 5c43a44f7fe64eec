"""Text of pages: tables, and what commands write between two marks."""

import pathlib
from collections.abc import Sequence

from t5x_variants import errors

END = '<!-- /figures -->'


def begin(command: str) -> str:
  """The mark above what a command has written."""
  return f'<!-- figures: {command} -->'


def fill(page: pathlib.Path, command: str, text: str) -> None:
  """Writes what a command has found between its marks on a page.

  Args:
    page: a file in which the marks are once each.
    command: what writes it, as the mark above it names it.
    text: Markdown.

  Raises:
    errors.UserError: a mark is missing or there twice; nothing is written.
  """
  mark = begin(command)
  before = page.read_text(encoding='utf-8')
  if before.count(mark) != 1 or before.count(END) != 1:
    raise errors.UserError(
      f'{page} must have the lines {mark!r} and {END!r} once each.'
    )
  head, rest = before.split(mark)
  tail = rest.split(END)[1]
  write(page, f'{head}{mark}\n\n{text}\n\n{END}{tail}')


def write(path: pathlib.Path, text: str) -> None:
  """Writes a file.

  Raises:
    errors.UserError: it cannot be written.
  """
  try:
    path.write_text(text, encoding='utf-8')
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written: {errors.reason(error)}.'
    ) from error


def markdown(
  rows: Sequence[Sequence[str]], rules: Sequence[str] | None = None
) -> str:
  """A Markdown table; the first row is its head.

  Args:
    rows: cells.
    rules: of each column `---`, or `---:` where numbers end below each other.
  """
  head, *rest = rows
  lines = [head, rules or ['---'] * len(head), *rest]
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def plain(rows: Sequence[Sequence[str]]) -> str:
  """Columns for a terminal; the first column is text, the others numbers."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      [row[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    ).rstrip()
    for row in rows
  )
