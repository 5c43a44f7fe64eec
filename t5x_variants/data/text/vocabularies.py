"""Vocabularies: bytes by default, SentencePiece where a model file is given.

The last ids of a vocabulary are the sentinels of span corruption, the very
last being the first sentinel: `extra_ids` are added to the end, or a model
file brings its own, as T5's `*.100extra` do.
"""

import re

from google.protobuf import message

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf

# T5's own: one sentinel for each span that 568 tokens can lose, and to spare.
EXTRA_IDS = 100
_SENTINEL = re.compile(r'\W?<extra_id_(\d+)>')


def byte(extra_ids: int = EXTRA_IDS) -> seqio.ByteVocabulary:
  """UTF-8 bytes: padding, EOS, unknown, 256 bytes, then the sentinels."""
  if not isinstance(extra_ids, int) or extra_ids < 1:
    raise errors.UserError(
      f'The extra_ids is {extra_ids!r}; a vocabulary for span corruption needs'
      ' 1 sentinel or more (T5 has 100).'
    )
  return seqio.ByteVocabulary(extra_ids=extra_ids)


def sentence_piece(
  path: str, extra_ids: int = EXTRA_IDS
) -> seqio.SentencePieceVocabulary:
  """A SentencePiece model, read when the first token is asked for.

  Args:
    path: the .model file, local or on cloud storage (gs://).
    extra_ids: sentinels to add after the pieces of the model; 0 where the
      model ends in sentinels of its own.

  Returns:
    The vocabulary; the file is known to exist.
  """
  if not isinstance(extra_ids, int) or extra_ids < 0:
    raise errors.UserError(
      f'The extra_ids is {extra_ids!r}; take 100, as T5 does, or 0 for a model'
      ' file that ends in sentinels of its own.'
    )
  try:
    exists = tf.io.gfile.exists(path)
  except tf.errors.OpError as error:
    raise errors.UserError(
      f'The SentencePiece model {path!r} cannot be reached:'
      f' {errors.reason(error)}.'
    ) from error
  if not exists:
    raise errors.UserError(
      f'The SentencePiece model {path!r} does not exist: give the path of a'
      ' .model file, or use vocabularies.byte().'
    )
  return seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)


def byte_or_sentence_piece(path: str | None = None, extra_ids: int = 0):
  """Bytes, or a SentencePiece model where its file is named.

  Args:
    path: the .model file; None: bytes, with their 100 sentinels.
    extra_ids: see `sentence_piece`.

  Returns:
    The vocabulary.
  """
  return byte() if path is None else sentence_piece(path, extra_ids)


def num_sentinels(vocabulary) -> int:
  """How many ids, counted from the last one down, are sentinels.

  Args:
    vocabulary: of seqio; a SentencePiece one is loaded here.

  Returns:
    Their number; a vocabulary that cannot serve raises an errors.UserError.
  """
  extra_ids = vocabulary.extra_ids or 0
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return extra_ids
  path = vocabulary.sentencepiece_model_file
  try:
    pieces = vocabulary.tokenizer
  except (RuntimeError, tf.errors.OpError, message.DecodeError) as error:
    if 'is already defined' in str(error):
      raise errors.UserError(
        f'The model {path!r} has sentinels of its own: set extra_ids=0 instead'
        f' of {extra_ids}.'
      ) from error
    raise errors.UserError(
      f'The file {path!r} is no SentencePiece model: {errors.reason(error)}.'
    ) from error
  if pieces.pad_id() != 0 or pieces.eos_id() < 1:
    raise errors.UserError(
      f'The model {path!r} has pad_id={pieces.pad_id()} and'
      f' eos_id={pieces.eos_id()}: padding must be 0 and EOS a token; train the'
      ' model with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1.'
    )
  count, last = 0, pieces.GetPieceSize() - 1
  while count <= last:
    found = _SENTINEL.fullmatch(pieces.IdToPiece(last - count))
    if not found or int(found[1]) != count:
      break
    count += 1
  return count
