"""Files that are written as a whole or not at all."""

import pathlib

import pytest

from t5x_variants import paths


@pytest.mark.parametrize('content', ['größer', b'\xff\x00'])
def test_a_file_is_replaced_as_a_whole(tmp_path, content):
  (tmp_path / 'a').write_text('old')
  paths.write(tmp_path / 'a', content)
  data = content if isinstance(content, bytes) else content.encode()
  assert (tmp_path / 'a').read_bytes() == data
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
  (tmp_path / 'a').write_text('old')

  def full(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'replace', full)
  with pytest.raises(OSError, match='No space'):
    paths.write(str(tmp_path / 'a'), 'new')
  assert (tmp_path / 'a').read_text() == 'old'
  assert [path.name for path in tmp_path.iterdir()] == ['a']
