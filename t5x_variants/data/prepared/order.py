"""Which examples share a row, and in what order: told from lengths alone.

Examples are counted over all epochs, p = epoch * N + place; each epoch is a
permutation of its own of the N chunks. A row takes examples in this order as
long as they fit and the next row begins with the one that does not, so that
the first example of a batch's first row is all that must be known to go on,
on any number of hosts: every host plans all rows and reads only its own.

The permutation is a Feistel network on just enough bits, walked until it
stays below N: nothing is stored, however large N is.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from t5x_variants.data.tasks import noise

_ROUNDS = 8
# Places looked at together: enough for numpy to be quick.
_BLOCK = 4096
# Tells the key of an epoch's order from that of an example's noise.
_ORDER, _NOISE = 1, 2


def permuted(places: np.ndarray, size: int, stream: int) -> np.ndarray:
  """A permutation of 0 .. size - 1 at these places.

  Args:
    places: whole numbers below `size`.
    size: how many there are.
    stream: a key; another key, another permutation.

  Returns:
    Their images, int64.
  """
  half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
  mask = (np.uint64(1) << half) - np.uint64(1)
  rounds = noise.draw(stream, np.arange(_ROUNDS))
  found = np.asarray(places).astype(np.uint64)
  outside = np.ones(found.shape, bool)
  while outside.any():
    left, right = found[outside] >> half, found[outside] & mask
    for drawn in rounds:
      left, right = right, left ^ (noise.mix(right + drawn) & mask)
    found[outside] = left << half | right
    outside = found >= size
  return found.astype(np.int64)


class Order:
  """The N examples of a split, epoch after epoch."""

  def __init__(self, size: int, seed: int, shuffle: bool):
    self.size, self._seed, self._shuffle = size, seed, shuffle
    # Planned and read soon after each other, in steps smaller than a block.
    self._block = functools.lru_cache(4)(self._make_block)

  def chunks(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands at positions start .. stop - 1, of one epoch or more.

    Args:
      start: a position.
      stop: a later one.

    Returns:
      The numbers of the chunks, int64, and the keys of their noise, uint64,
      drawn from the seed, the epoch and the chunk.
    """
    blocks = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
    first = blocks.start * _BLOCK
    numbers, streams = (
      np.concatenate(found)
      for found in zip(*map(self._block, blocks), strict=True)
    )
    wanted = slice(start - first, stop - first)
    return numbers[wanted], streams[wanted]

  def _make_block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    start, stop = index * _BLOCK, (index + 1) * _BLOCK
    while start < stop:
      epoch, first = divmod(start, self.size)
      last = min(self.size, first + stop - start)
      numbers = np.arange(first, last)
      if self._shuffle:
        stream = noise.key(_ORDER, self._seed, epoch)
        numbers = permuted(numbers, self.size, stream)
      streams = noise.draw(noise.key(_NOISE, self._seed, epoch), numbers)
      found.append((numbers, streams))
      start += last - first
    numbers, streams = map(np.concatenate, zip(*found, strict=True))
    return numbers, streams


def first_examples(
  used: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
  limits: tuple[int, int],
  start: int,
  stop: int | None,
  pack: bool,
) -> Iterator[int]:
  """The position with which each row begins, and at the end `stop`.

  Args:
    used: lengths of inputs and of targets of the examples at positions
      `start` .. `stop` - 1.
    limits: row lengths of inputs and targets.
    start: position of the first row's first example.
    stop: position after the last example; None: never.
    pack: whether examples share a row.

  Yields:
    Positions, rising.
  """
  inputs_left = targets_left = -1
  position = start
  while stop is None or position < stop:
    ahead = position + _BLOCK
    ahead = ahead if stop is None else min(ahead, stop)
    lengths = (values.tolist() for values in used(position, ahead))
    for inputs, targets in zip(*lengths, strict=True):
      if not pack or inputs > inputs_left or targets > targets_left:
        yield position
        inputs_left, targets_left = limits
      inputs_left -= inputs
      targets_left -= targets
      position += 1
  yield stop
