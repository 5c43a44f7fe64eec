"""Damaged files of prepared data: the same batches or one sentence."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from data_cases import alike, dataset, prepare, sentence_piece

from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.errors import UserError

RECORDS = 'train-00000-of-00001.array_record'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A small set with a SentencePiece model: two splits, three records."""
  folder = tmp_path_factory.mktemp('damage')
  rng = np.random.default_rng(0)
  text = '\n\n'.join(
    f'Document {i} ' + ' '.join(map(str, rng.integers(0, 99, 20)))
    for i in range(30)
  )
  (folder / 'a.txt').write_text(text)
  source = corpora.text_files(str(folder / 'a.txt'), validation_fraction=0.3)
  model = sentence_piece(folder / 'a.txt', folder / 'm')
  vocabulary = vocabularies.sentence_piece(model)
  prepare(folder / 'set', tasks.span_corruption(source, vocabulary))
  return folder / 'set'


@pytest.fixture
def copy(whole, tmp_path):
  return pathlib.Path(shutil.copytree(whole, tmp_path / 'set'))


def read(folder):
  """All batches of an epoch of each split."""
  opened = [
    dataset(folder, split, num_epochs=1).open()
    for split in ('train', 'validation')
  ]
  return [batch for batches in opened for batch in batches]


def refused(words, read, *arguments):
  with pytest.raises(UserError, match=words) as error:
    read(*arguments)
  assert '\n' not in str(error.value) and str(error.value).endswith('.')


@pytest.mark.parametrize(
  'name',
  [
    'info.json',
    'train.lengths',
    'validation.lengths',
    'vocabulary.model',
    RECORDS,
  ],
)
def test_a_flipped_bit_is_said_or_changes_nothing(copy, whole, name):
  expected = read(whole)
  data = (whole / name).read_bytes()
  # ArrayRecord pads with zeros, where a flip is harmless: most are elsewhere.
  used = np.flatnonzero(np.frombuffer(data, np.uint8))
  rng = np.random.default_rng(1)
  bits = [8 * place + rng.integers(8) for place in rng.choice(used, 16)]
  bits += [*rng.integers(0, 8 * len(data), 4)]
  said = 0
  for bit in bits:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    (copy / name).write_bytes(damaged)
    try:
      found = read(copy)
    except UserError as error:
      said += 1
      assert name in str(error) or 'has format' in str(error)
      assert '\n' not in str(error) and str(error).endswith('.')
    else:
      alike(found, expected)
  # ArrayRecord does not look at the first bytes of its file.
  assert said >= 13


def cut(folder):
  os.truncate(folder / RECORDS, (folder / RECORDS).stat().st_size - 1000)


def other_vocabulary(folder):
  info = prepared_set.load(folder)
  vocabulary = dataclasses.replace(info.vocabulary, extra_ids=50)
  info = dataclasses.replace(info, vocabulary=vocabulary)
  (folder / 'info.json').write_text(info.to_json())


def of_a_later_format(folder):
  info = json.loads((folder / 'info.json').read_text())
  (folder / 'info.json').write_text(json.dumps(info | {'format': 7}))


@pytest.mark.parametrize(
  'damage, words',
  [
    (cut, 'train-00000.* is damaged .it has .* bytes instead of'),
    (other_vocabulary, 'is not the vocabulary'),
    (of_a_later_format, 'has format 7 and .* reads 1 and 2'),
    (lambda copy: (copy / 'info.json').unlink(), 'no whole set .*begun'),
    (lambda copy: (copy / 'train.lengths').unlink(), 'it has 0 bytes'),
    (shutil.rmtree, 'holds no whole set of prepared data'),
  ],
)
def test_damage_is_one_sentence(copy, damage, words):
  damage(copy)
  refused(words, read, copy)


def test_lengths_are_checked_when_they_are_opened(copy):
  path = copy / 'train.lengths'
  lengths = np.fromfile(path, '<u2')
  # A swap: every number is one of this set, and so is their sum.
  first, other = 0, np.flatnonzero(lengths != lengths[0])[0]
  lengths[[first, other]] = lengths[[other, first]]
  lengths.tofile(path)
  refused(r'train.lengths is damaged \(its check', dataset(copy).open)
  assert dataset(copy, 'validation').open()


def to_first_format(folder):
  """What earlier versions wrote; returns the content of info.json."""
  path = folder / 'info.json'
  info = json.loads(path.read_text())
  del info['crc32']
  for split in info['splits'].values():
    del split['lengths_crc32']
  info['format'] = 1
  path.write_text(json.dumps(info, indent=1) + '\n')
  return info


def test_a_set_of_the_first_format_is_read_as_before(copy, whole, caplog):
  info = to_first_format(copy)
  prepared_set._say_unchecked.cache_clear()
  alike(read(copy), read(whole))
  (said,) = [r.getMessage() for r in caplog.records]
  assert 'has no checksums' in said and '\n' not in said
  # Saved positions name the set by this hash.
  text = json.dumps(info | {'libraries': {}}, sort_keys=True)
  expected = hashlib.sha256(text.encode()).hexdigest()[:16]
  assert prepared_set.load(copy).fingerprint() == expected
  # A record's own length tells of most damage to the lengths.
  lengths = np.fromfile(copy / 'train.lengths', '<u2')
  lengths[0] -= 1
  lengths.tofile(copy / 'train.lengths')
  refused('not those of this set', read, copy)


def of_train(**fields):
  return lambda info: {
    'splits': info['splits'] | {'train': info['splits']['train'] | fields}
  }


@pytest.mark.parametrize(
  'change',
  [
    lambda info: {'chunk_length': str(info['chunk_length'])},
    lambda info: {'chunk_length': 1},
    lambda info: {'noise_density': '0.15'},
    lambda info: {'noise_density': 1.5},
    lambda info: {'mean_noise_span_length': None},
    lambda info: {'format': 1.0},
    lambda info: {'task': 5},
    lambda info: {'splits': []},
    lambda info: {'splits': {'train': 3}},
    lambda info: {'vocabulary': info['vocabulary'] | {'vocab_size': -1}},
    lambda info: {'vocabulary': {}},
    lambda info: {'unheard_of': 1},
    of_train(examples=True),
    of_train(examples=2.0),
    of_train(examples=0, shards=[]),
    of_train(tokens=-5),
    of_train(shards=[{'file': 'a'}]),
  ],
)
def test_a_value_of_the_wrong_kind_is_one_sentence(copy, change):
  """In the first format: in the second the checksum is wrong besides."""
  info = to_first_format(copy)
  (copy / 'info.json').write_text(json.dumps(info | change(info)))
  refused('info.json is damaged or was', prepared_set.load, copy)


def test_a_text_that_was_cut_or_spoilt_is_one_sentence(copy):
  data = (copy / 'info.json').read_bytes()
  spoilt = [data[:size] for size in (0, 1, 40, len(data) // 2, len(data) - 2)]
  spoilt += [data.replace(b'"task"', b'"t\xffsk"'), b'\xff\xfe', b'5', b'null']
  for text in [*spoilt, b'[]']:
    (copy / 'info.json').write_bytes(text)
    refused('info.json is damaged or was', prepared_set.load, copy)
