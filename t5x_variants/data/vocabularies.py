"""Vocabularies: bytes by default, SentencePiece where a model file is given.

Both reserve `extra_ids` ids at their end for the sentinels of span
corruption, the last id being the first sentinel.
"""

from t5x_variants.data._tensorflow import seqio, tf
from t5x_variants.errors import UserError

# T5's own: one sentinel for each span that 568 tokens can lose, and to spare.
EXTRA_IDS = 100


def _check_extra_ids(extra_ids: int) -> int:
  if not isinstance(extra_ids, int) or extra_ids < 1:
    raise UserError(
      f'extra_ids={extra_ids!r}: a vocabulary for span corruption needs 1'
      ' sentinel or more (T5 has 100)'
    )
  return extra_ids


def byte(extra_ids: int = EXTRA_IDS) -> seqio.ByteVocabulary:
  """UTF-8 bytes: padding, EOS, unknown, 256 bytes, then the sentinels."""
  return seqio.ByteVocabulary(extra_ids=_check_extra_ids(extra_ids))


def sentence_piece(
  path: str, extra_ids: int = EXTRA_IDS
) -> seqio.SentencePieceVocabulary:
  """A SentencePiece model, read when the first token is asked for.

  Args:
    path: the .model file, local or on cloud storage (gs://).
    extra_ids: sentinels added after the pieces of the model.

  Returns:
    The vocabulary; the file is known to exist.
  """
  _check_extra_ids(extra_ids)
  try:
    exists = tf.io.gfile.exists(path)
  except tf.errors.OpError as error:
    raise UserError(
      f'the SentencePiece model {path!r} cannot be reached: {error.message}'
    ) from error
  if not exists:
    raise UserError(
      f'the SentencePiece model {path!r} does not exist: give the path of a'
      ' .model file, or use vocabularies.byte()'
    )
  return seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)
