"""Documents out of every source: complete, shared out, and bad input said."""

import gzip
import itertools
import json
import logging
import os

import data_cases
import pytest
import tensorflow_datasets as tfds

from t5x_variants.data import pipeline
from t5x_variants.data.base._tensorflow import seqio
from t5x_variants.data.prepared import writer
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import (
  corpora,
  documents,
  embedded,
  sources,
  vocabularies,
)
from t5x_variants.errors import UserError

TEXTS = [f'Document {i}.\nIts second line, number {i * i}.' for i in range(300)]


@pytest.fixture(params=['in memory', 'streamed'])
def size(request, monkeypatch):
  """Runs a test with a corpus held in memory, and with a streamed one."""
  if request.param == 'streamed':
    monkeypatch.setattr(sources, 'IN_MEMORY', 0)
    monkeypatch.setattr(documents, 'BLOCK', 1000)
  return request.param


def write(path, data):
  data = data.encode() if isinstance(data, str) else data
  opener = gzip.open if path.name.endswith('.gz') else open
  with opener(path, 'wb') as file:
    file.write(data)
  return str(path)


def read(source, split='train', shard=None, **order):
  order = {'shuffle': False, **order}
  dataset = source.get_dataset(split, shard_info=shard, **order)
  return [x['text'].decode() for x in dataset.as_numpy_iterator()]


def both(source, **kwargs):
  return read(source, 'train', **kwargs), read(source, 'validation', **kwargs)


def test_embedded_corpus_is_prose_and_the_same_every_time():
  first = embedded.documents()
  with open(embedded.cached_file(), encoding='utf-8') as file:
    assert [json.loads(line)['text'] for line in file] == first
  assert len(set(first)) == len(first)
  assert 1_000_000 < sum(map(len, first)) < 10_000_000
  assert min(map(len, first)) >= embedded.SHORTEST
  train, validation = both(corpora.embedded())
  assert set(train) | set(validation) == set(first)
  assert 0.03 < len(validation) / len(first) < 0.07


def test_embedded_corpus_is_built_whole_or_not_at_all(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(embedded, 'documents', lambda: ['a text', None, 'b'])
  monkeypatch.setattr(embedded.json, 'dumps', lambda x, **_: x['text'])
  with pytest.raises(TypeError):
    embedded.cached_file()
  assert not any(path.is_file() for path in tmp_path.rglob('*'))
  monkeypatch.undo()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(embedded, 'documents', lambda: ['Grüße', 'b'])
  path = embedded.cached_file()
  assert os.listdir(tmp_path / 't5x_variants') == [os.path.basename(path)]
  with open(path, encoding='utf-8') as file:
    assert [json.loads(line)['text'] for line in file] == ['Grüße', 'b']


def test_embedded_corpus_says_where_it_cannot_be_kept(tmp_path, monkeypatch):
  write(tmp_path / 'file', 'no folder')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.setattr(embedded, 'documents', lambda: ['a'])
  with pytest.raises(UserError, match='XDG_CACHE_HOME'):
    embedded.cached_file()


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz'])
def test_blank_lines_part_documents(tmp_path, size, name):
  path = write(tmp_path / name, '\n \t\n\n'.join(TEXTS) + '\n\n')
  train, validation = both(corpora.text_files(path, validation_fraction=0.2))
  assert sorted(train + validation) == sorted(TEXTS)
  assert train == [text for text in TEXTS if text in set(train)]


def test_lines_and_files_as_documents(tmp_path, size):
  text = '\r\n'.join(TEXTS)
  other = write(tmp_path / 'other.txt', 'For validation.')
  path = write(tmp_path / 'a.txt', text)
  lines = corpora.text_files(path, other, document='line')
  expected = text.replace('\r', '').split('\n')
  assert both(lines) == (expected, ['For validation.'])
  files = corpora.text_files(path, other, document='file')
  pieces = read(files)
  # Streamed here in blocks of 1000 bytes, cut at line ends.
  assert len(pieces) == 1 if size == 'in memory' else len(pieces) > 5
  assert '\n'.join(pieces) == text.replace('\r', '')


def test_one_long_line_streams_in_pieces(tmp_path, size, monkeypatch):
  monkeypatch.setattr(documents, 'BLOCK', 1000)
  words = 'äöü ' * 3000
  path = write(tmp_path / 'text8', words + 'ä' * 3000)
  for form in ('blank_line', 'line', 'file'):
    source = corpora.text_files(path, write(tmp_path / 'v', 'x'), document=form)
    pieces = read(source)
    assert max(len(piece.encode()) for piece in pieces) <= 1000
    joined = ' '.join(pieces).replace(' ', '')
    assert joined == words.replace(' ', '') + 'ä' * 3000


def test_json_lines_as_c4_has_them(tmp_path, size):
  for shard in range(4):
    lines = [
      json.dumps({'text': text, 'url': 'x', 'timestamp': '2019'})
      for text in TEXTS[shard::4]
    ]
    name = f'c4-train.{shard:05d}-of-00004.json.gz'
    write(tmp_path / name, '\n'.join(lines) + '\n')
  write(tmp_path / 'c4-validation.json.gz', json.dumps({'text': 'Held out.'}))
  train = str(tmp_path / 'c4-train.*.json.gz')
  validation = str(tmp_path / 'c4-validation*')
  source = corpora.json_lines(train, validation)
  assert sorted(read(source)) == sorted(TEXTS)
  assert read(source, 'validation') == ['Held out.']
  hashed = both(corpora.json_lines(train, validation_fraction=0.2))
  assert sorted(hashed[0] + hashed[1]) == sorted(TEXTS)


def test_pairs_of_inputs_and_targets(tmp_path, size, caplog):
  pairs = [(f'question {i}\t?', f'answer {i}') for i in range(200)]
  pairs.append(('', ''))
  lines = [json.dumps({'inputs': a, 'targets': b}) for a, b in pairs]
  bad = [{'inputs': 'x'}, {'inputs': 'x', 'targets': 1}, [], 7]
  bad += [{'inputs': 'x\x1f', 'targets': 'y'}]
  write(tmp_path / 'a.jsonl', '\n'.join([*lines, *map(json.dumps, bad)]) + '\n')
  source = corpora.pairs(str(tmp_path / 'a.jsonl'), validation_fraction=0.3)
  train, validation = both(source)
  found = [text.split(documents.SEPARATOR) for text in train + validation]
  assert sorted(map(tuple, found)) == sorted(pairs)
  assert train and validation
  assert "'targets'" in caplog.text and 'U+001F' in caplog.text


def test_a_long_json_line_is_read_whole(tmp_path, size):
  text = 'word ' * 5000
  lines = [json.dumps({'text': x}) for x in ('first', text, 'last')]
  path = write(tmp_path / 'a.jsonl', '\n'.join(lines))
  source = corpora.json_lines(path, write(tmp_path / 'v', lines[0]))
  assert read(source) == ['first', text.strip(), 'last']


def test_the_split_depends_on_the_document_alone(tmp_path):
  one = write(tmp_path / 'one.txt', '\n\n'.join(TEXTS))
  two = write(tmp_path / 'two.txt', '\n\n'.join(reversed(TEXTS[:200])))
  first = corpora.text_files(one, validation_fraction=0.1)
  second = corpora.text_files([two], validation_fraction=0.1)
  assert set(read(second, 'validation')) <= set(read(first, 'validation'))
  assert 10 < len(read(first, 'validation')) < 50
  # A split must never change between versions or machines.
  assert documents.uniform_hash(b'Document') == 0xC19B4F86AC5DE9E6


@pytest.mark.parametrize(
  'num_files, num_shards', [(3, 1), (1, 2), (3, 4), (4, 4)]
)
def test_shards_are_disjoint_and_complete(
  tmp_path, size, num_shards, num_files
):
  for i in range(num_files):
    write(tmp_path / f'{i}.txt', '\n\n'.join(TEXTS[i::num_files]))
  source = corpora.text_files(str(tmp_path / '*.txt'), validation_fraction=0.1)
  train = []
  for index in range(num_shards):
    shard = seqio.ShardInfo(index, num_shards)
    train.append(read(source, shard=shard, shuffle=True, seed=7))
    assert len(train[-1]) > 300 / num_shards * 0.6
  together = [*itertools.chain(*train), *read(source, 'validation')]
  assert sorted(together) == sorted(TEXTS)


def test_order_follows_from_the_seed(tmp_path, size):
  for i in range(5):
    write(tmp_path / f'{i}.txt', '\n\n'.join(TEXTS[i::5]))
  source = corpora.text_files(str(tmp_path / '*'), validation_fraction=0.1)
  orders = [read(source, shuffle=True, seed=seed) for seed in (1, 1, 2)]
  assert orders[0] == orders[1] != orders[2]
  twice = source.get_dataset('train', True, 1).repeat(2).as_numpy_iterator()
  twice = [x['text'].decode() for x in twice]
  epochs = twice[: len(twice) // 2], twice[len(twice) // 2 :]
  assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


BAD = {
  'empty.txt': b'',
  'binary.txt': b'\x7fELF\0\0\0 something',
  'utf16.txt': 'Wide text.'.encode('utf-16'),
  'latin1.txt': b'Caf\xe9.\n\nBut this is fine.',
}


def test_bad_files_and_documents_are_skipped_and_said(tmp_path, size, caplog):
  for name, data in BAD.items():
    write(tmp_path / name, data)
  write(tmp_path / 'bom.txt', b'\xef\xbb\xbfWith a mark.')
  whole = gzip.compress('\n\n'.join(TEXTS).encode())
  (tmp_path / 'cut.txt.gz').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'not.txt.gz').write_bytes(b'plain text, not gzip')
  held = write(tmp_path / 'held', 'x')
  source = corpora.text_files(str(tmp_path / '*.*'), held)
  with caplog.at_level(logging.WARNING, 't5x_variants'):
    found = read(source)
    assert len(found) == len(read(source))
  assert {'With a mark.', 'But this is fine.'} <= set(found)
  # And of the truncated file what came before the cut.
  assert 50 < len(set(found) & set(TEXTS)) < 300
  assert len(set(found) - set(TEXTS)) == 3
  said = ' '.join(record.getMessage() for record in caplog.records)
  for reason in (
    'empty files',
    'binary files',
    'documents of invalid UTF-8',
    f'damaged gzip file {tmp_path / "cut.txt.gz"}',
    f'damaged gzip file {tmp_path / "not.txt.gz"}',
  ):
    assert said.count(reason) == 1, said
  if size == 'in memory':
    assert '1 empty files' in said and '2 binary files' in said
    assert len(caplog.records) == 1 and f'kept {len(found)}' in said


def test_bad_json_lines_are_skipped_and_said(tmp_path, size, caplog):
  lines = [
    '{"text": "Good."}',
    'no json',
    '{"body": "x"}',
    '{"text": 5}',
    '[1]',
    '"text"',
    '{"text": "\\u0000"}',
    '{"text": "\\ud800"}',
    '{"text": "  "}',
    '',
  ]
  path = write(tmp_path / 'a.json', '\n'.join(lines))
  source = corpora.json_lines(path, write(tmp_path / 'v', lines[0]))
  with caplog.at_level(logging.WARNING, 't5x_variants'):
    assert read(source) == ['Good.']
  said = ' '.join(record.getMessage() for record in caplog.records)
  for reason in (
    'lines that are no JSON',
    "without the field 'text'",
    "whose 'text' is no string",
    'NUL byte',
    'invalid UTF-8',
  ):
    assert said.count(reason) == 1, said


def test_nothing_usable_at_all_is_refused(tmp_path, size):
  for name in BAD:
    source = corpora.text_files(write(tmp_path / name, BAD[name][:6]))
    with pytest.raises(UserError, match=r'None of the 1 files .*skipped: 1'):
      source.get_dataset('train')
  (tmp_path / 'two').mkdir()
  write(tmp_path / 'two/a.txt', b'PK\x03\x04\0\0')
  write(tmp_path / 'two/b.txt', gzip.compress(b'text'))
  source = corpora.text_files(str(tmp_path / 'two/*'))
  with pytest.raises(UserError, match=r'2 files .*skipped: 2 binary files'):
    source.get_dataset('train')


def test_only_bad_json_is_refused(tmp_path, size):
  path = write(tmp_path / 'a.json', '{"body": "x"}\n' * 3)
  with pytest.raises(UserError, match="3 JSON lines without the field 'text'"):
    corpora.json_lines(path).get_dataset('train')
  held = write(tmp_path / 'v', '{"body": "y"}')
  assert read(corpora.json_lines(path, held, field='body')) == ['x'] * 3


@pytest.mark.parametrize(
  'make, macros',
  [
    (corpora.text_files, ('TEXT_FILES', 'VALIDATION_FILES')),
    (corpora.json_lines, ('C4_JSON_TRAIN', 'C4_JSON_VALIDATION')),
    (corpora.pairs, ('PAIRS', 'VALIDATION_PAIRS')),
  ],
)
def test_what_names_no_file_is_refused(tmp_path, monkeypatch, make, macros):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path / 'a.txt', 'One document.')
  os.mkdir('folder.csv')
  for given in ('no_such_file.txt', '*.csv', '[', []):
    with pytest.raises(UserError, match=r'matches no file|must be a file'):
      make(given)
  for given in (str(tmp_path), f'{tmp_path}/', [path, tmp_path]):
    words = f"^{macros[0]} is .* is a folder: .* such as '{tmp_path}/"
    with pytest.raises(UserError, match=words):
      make(given)
  for given in (None, 5, [None], [5], {'a': 'b'}, ''):
    with pytest.raises(UserError, match=f'^{macros[0]} is .*'):
      make(given)
  for held_out, words in ((str(tmp_path), 'is a folder'), ('', 'no file')):
    with pytest.raises(UserError, match=f'^{macros[1]} is .*{words}'):
      make(path, held_out)


def test_a_file_that_vanishes_is_one_sentence(tmp_path, size):
  """When the source is looked through, and in the middle of an epoch."""
  for i in range(3):
    write(tmp_path / f'{i}.txt', '\n\n'.join(TEXTS))
  pattern = str(tmp_path / '*.txt')
  source = corpora.text_files(pattern, validation_fraction=0.1)
  gone = tmp_path / '2.txt'
  data = gone.read_bytes()
  gone.unlink()
  with pytest.raises(UserError, match=r"2.txt' cannot be read: .*No such file"):
    source.get_dataset('train')
  gone.write_bytes(data)
  name = tasks.span_corruption(source, vocabularies.byte())
  lengths = {'inputs': 128, 'targets': 48}
  work = writer.configure(name, lengths, str(tmp_path / 'set'))
  batches = pipeline.Batches(
    name, lengths, 'train', 4, shuffle=False, seed=0, num_epochs=1
  )
  next(batches)
  gone.unlink()
  if size == 'in memory':  # It has been read.
    assert list(batches)
    return
  with pytest.raises(UserError, match=r'cannot be read: .*2.txt') as error:
    list(batches)
  assert '\n' not in str(error.value) and 'Traceback' not in str(error.value)
  with pytest.raises(UserError, match=r'cannot be read: .*2.txt'):
    for shard in writer.begin(work):
      writer.write_shard(work, *shard)


def test_slips_of_options_are_refused(tmp_path):
  path = write(tmp_path / 'a.txt', 'One document.')
  with pytest.raises(UserError, match=r'DOCUMENT is .*blank_line'):
    corpora.text_files(path, document='paragraph')
  for fraction in (0, 1.0, -1, 5, '0.1', None):
    with pytest.raises(UserError, match='VALIDATION_FRACTION is'):
      corpora.text_files(path, validation_fraction=fraction)
  with pytest.raises(UserError, match='can serve one'):
    corpora.text_files(path, str(tmp_path / '*'))
  for split, words in (
    ('validation', 'VALIDATION_FRACTION, which is 0.01'),
    ('test', "split is 'test'"),
  ):
    with pytest.raises(UserError, match=words):
      corpora.text_files(path).get_dataset(split)


class TinyText(tfds.core.GeneratorBasedBuilder):
  """A dataset of TFDS that is prepared without a download."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'text': tfds.features.Text(), 'url': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(TEXTS[10:]),
      'validation': self._generate_examples(TEXTS[:10]),
    }

  def _generate_examples(self, texts):
    for i, text in enumerate(texts):
      yield i, {'text': text, 'url': 'x'}


def test_tfds(tmp_path):
  TinyText(data_dir=tmp_path).download_and_prepare()
  source = corpora.tfds('tiny_text:1.0.0', str(tmp_path))
  assert set(source.splits) == {'train', 'validation'}
  train, validation = both(source)
  assert sorted(train) == sorted(TEXTS[10:])
  assert sorted(validation) == sorted(TEXTS[:10])
  with pytest.raises(UserError, match=r"no feature 'body'.*text"):
    corpora.tfds('tiny_text:1.0.0', str(tmp_path), 'body').get_dataset('train')


def test_tfds_that_is_not_there(tmp_path):
  for name, words in (
    ('c4/en:3.1.0', 'not prepared in .*TFDS_DATA_DIR'),
    ('no_such_dataset:1.0.0', 'cannot open'),
    ('c4/en', 'no version'),
  ):
    with pytest.raises(UserError, match=words):
      _ = corpora.tfds(name, str(tmp_path)).splits


def test_byte_vocabulary():
  vocabulary = vocabularies.byte()
  assert vocabulary.vocab_size == 359
  assert vocabularies.num_sentinels(vocabulary) == 100
  for extra_ids in (0, -1, None):
    with pytest.raises(UserError, match='extra_ids is'):
      vocabularies.byte(extra_ids)


@pytest.fixture(scope='module')
def sentence_piece(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sentence_piece')
  write(folder / 'text', '\n'.join(TEXTS))
  data_cases.sentence_piece(folder / 'text', folder / 't5')
  ids = (-1, 2, 0, 1)
  data_cases.sentence_piece(folder / 'text', folder / 'default', ids)
  return folder


def test_sentence_piece_sentinels(sentence_piece):
  path = str(sentence_piece / 't5.model')
  added = vocabularies.sentence_piece(path)
  assert vocabularies.num_sentinels(added) == 100
  # As T5's *.100extra: the sentinels are pieces of the model itself.
  own = sentence_piece / 'own.model'
  own.write_bytes(added.sp_model)
  brought = vocabularies.sentence_piece(str(own), extra_ids=0)
  assert vocabularies.num_sentinels(brought) == 100
  assert brought.vocab_size == added.vocab_size
  assert added.tokenizer.IdToPiece(added.vocab_size - 1) == '▁<extra_id_0>'
  none = vocabularies.sentence_piece(path, extra_ids=0)
  assert vocabularies.num_sentinels(none) == 0
  with pytest.raises(UserError, match='set extra_ids=0'):
    vocabularies.num_sentinels(vocabularies.sentence_piece(str(own), 50))


def test_sentence_piece_that_cannot_serve(sentence_piece):
  with pytest.raises(UserError, match='does not exist'):
    vocabularies.sentence_piece('/no/such.model')
  with pytest.raises(UserError, match='extra_ids is -1'):
    vocabularies.sentence_piece('/no/such.model', -1)
  text = vocabularies.sentence_piece(str(sentence_piece / 'text'))
  with pytest.raises(UserError, match='no SentencePiece model'):
    vocabularies.num_sentinels(text)
  path = str(sentence_piece / 'default.model')
  with pytest.raises(UserError, match='--pad_id=0'):
    vocabularies.num_sentinels(vocabularies.sentence_piece(path))
