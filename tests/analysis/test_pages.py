"""Text of pages: what is between two marks, and tables."""

import pytest

from t5x_variants import errors
from t5x_variants.analysis import pages


def test_a_page_keeps_all_but_what_is_between_its_marks(tmp_path):
  begin, page = pages.begin('a command'), tmp_path / 'page.md'
  page.write_text(f'before\n{begin}\nold\n{pages.END}\nafter\n')
  for _ in range(2):
    pages.fill(page, 'a command', '| a |')
    assert page.read_text() == (
      f'before\n{begin}\n\n| a |\n\n{pages.END}\nafter\n'
    )
  with pytest.raises(errors.UserError, match='once each'):
    pages.fill(page, 'another', '')
  assert '| a |' in page.read_text()


def test_tables_have_a_head_and_columns_of_one_width():
  rows = [('name', 'n'), ('a', '10'), ('long name', '1')]
  assert pages.markdown(rows, ['---', '---:']).splitlines() == [
    *('| name | n |', '| --- | ---: |', '| a | 10 |', '| long name | 1 |')
  ]
  assert pages.plain(rows).splitlines() == [
    *('name        n', 'a          10', 'long name   1')
  ]
