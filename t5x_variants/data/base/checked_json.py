"""JSON objects with a CRC-32 over their values, so that damage is seen."""

import json
import zlib
from collections.abc import Mapping

_CHECKSUM = 'crc32'


def _crc32(fields: Mapping) -> int:
  """Of the values, however they are laid out in the text."""
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def dumps(fields: Mapping, indent: int | None = None) -> str:
  """As text, with the field `crc32`; the same object, the same text."""
  plain = json.loads(json.dumps(fields))
  return json.dumps(plain | {_CHECKSUM: _crc32(plain)}, indent=indent) + '\n'


def loads(data: bytes) -> tuple[dict, bool]:
  """The reverse of `dumps`.

  Args:
    data: the text in UTF-8.

  Returns:
    The fields, and whether they had a checksum, which was right.

  Raises:
    ValueError: this is no JSON object, or its checksum is another.
  """
  fields = json.loads(data.decode('utf-8'))
  if not isinstance(fields, dict):
    raise ValueError('it is no JSON object')
  if _CHECKSUM not in fields:
    return fields, False
  if fields.pop(_CHECKSUM) != _crc32(fields):
    raise ValueError('its checksum is not that of its content')
  return fields, True
