"""Texts to token ids and back, sentinels written as `<extra_id_0>`.

seqio's vocabularies know sentinels as ids without a spelling. A person who
asks a model to fill gaps writes them, and reads them in its answer:

  inputs      Thank you <extra_id_0> me to your party <extra_id_1> week.
  prediction  <extra_id_0>for inviting<extra_id_1>last
"""

import re

import numpy as np

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio

_SENTINEL = re.compile(r'<extra_id_(\d+)>')


def encode(vocabulary: seqio.Vocabulary, text: str) -> list[int]:
  """Ids of a text, without EOS.

  Raises:
    errors.UserError: the text names a sentinel that the vocabulary does not
      have.
  """
  ids: list[int] = []
  # Text and the numbers of sentinels, in turn.
  for place, part in enumerate(_SENTINEL.split(text)):
    if place % 2 == 0:
      ids += vocabulary.encode(part) if part else []
    elif int(part) < (vocabulary.extra_ids or 0):
      ids.append(vocabulary.vocab_size - 1 - int(part))
    else:
      raise errors.UserError(
        f'The text has <extra_id_{part}> and the vocabulary has'
        f' {vocabulary.extra_ids or 0} sentinels, numbered from 0: use these.'
      )
  return ids


def decode(vocabulary: seqio.Vocabulary, ids) -> str:
  """The text of ids up to EOS; what is no UTF-8 becomes U+FFFD."""
  first = vocabulary.vocab_size - (vocabulary.extra_ids or 0)
  parts: list[str] = []
  waiting: list[int] = []

  def say():
    if waiting:
      parts.append(_text(vocabulary, waiting))
      waiting.clear()

  for token in map(int, ids):
    if token == vocabulary.eos_id:
      break
    if token >= first:
      say()
      parts.append(f'<extra_id_{vocabulary.vocab_size - 1 - token}>')
    elif token:
      waiting.append(token)
  say()
  return ''.join(parts)


def _text(vocabulary, ids: list[int]) -> str:
  if isinstance(vocabulary, seqio.ByteVocabulary):
    # seqio drops bytes that make no character; a reader should see them.
    known = [token - 3 for token in ids if token >= 3]
    return bytes(known).decode('utf-8', errors='replace')
  return vocabulary.decode(ids)


def padded(ids: list[int], length: int, eos_id: int) -> np.ndarray:
  """Int32 [length]: as many ids as leave room for EOS, EOS, zeros."""
  row = np.zeros(length, np.int32)
  ids = [*ids[: length - 1], eos_id]
  row[: len(ids)] = ids
  return row
