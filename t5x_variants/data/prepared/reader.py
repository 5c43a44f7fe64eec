"""Batches out of prepared data, without TensorFlow, for any number of hosts.

A set that `python -m t5x_variants.prepare_data` has written (`format`)
is read by Grain: one shuffle over the whole split per epoch and fresh span
corruption for each example (`noise`), both drawn from (seed, epoch, chunk)
alone; examples packed as `rows` says. The features are those of `pipeline`.

Global batches do not depend on how many hosts read them: host i of n takes the
i-th n-th of the rows. The position is one number, that of the next example,
and means the same on any number of hosts.
"""

import atexit
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from etils import epath

from t5x_variants import errors
from t5x_variants.data.base import checked_json, positions
from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.prepared import info as prepared_info
from t5x_variants.data.prepared import order as rows
from t5x_variants.data.tasks import noise

# Batches ready before they are asked for.
_AHEAD = 2
_POSITION = 'position.json'


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The rows of one batch that this host takes.

  Attributes:
    firsts: the first example of each row, and one past the last row's last.
    following: the first example of the next batch.
  """

  firsts: tuple[int, ...]
  following: int


class _Plans(grain.IterDataset):
  """Plans of batches from a position on."""

  def __init__(self, make):
    super().__init__()
    self._make = make

  def __iter__(self):
    return _PlanIterator(self._make)


class _PlanIterator(grain.DatasetIterator):
  """Its state is the position of the next example."""

  _plans: Iterator[_Plan]

  def __init__(self, make: Callable[[int], Iterator[_Plan]]):
    super().__init__()
    self._make = make
    self.set_state({'example': 0})

  def __next__(self) -> _Plan:
    plan = next(self._plans)
    self._position = plan.following
    return plan

  def get_state(self):
    return {'example': self._position}

  def set_state(self, state):
    self._position = state['example']
    self._plans = self._make(self._position)


class Batches:
  """An endless or finite iterator of batches with a position.

  Attributes:
    info: what the prepared set is.
    lengths: row lengths of 'inputs' and 'targets'.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    mixture_or_task_name: str | None,
    task_feature_lengths: Mapping[str, int] | None,
    split: str,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    pack: bool = True,
    num_epochs: int | None = None,
    shard_index: int = 0,
    num_shards: int = 1,
  ):
    """Opens the set; chunks are read when the first batch is.

    Args:
      folder: of the set.
      mixture_or_task_name: the name the set must have; None: any.
      task_feature_lengths: lengths of 'inputs' and 'targets'; None: those for
        which it was prepared.
      split: such as 'train' or 'validation'.
      batch_size: of all shards together.
      shuffle: whether in a random order.
      seed: of the order and of the noise.
      pack: whether several short examples share a row.
      num_epochs: passes over the data; None: without end. The last batch of
        a finite one is filled up with padding, of loss weight zero.
      shard_index: which of the shards, one a host, is read here.
      num_shards: among how many shards the rows are shared out.
    """
    self._rows = positions.rows_of_shard(batch_size, shard_index, num_shards)
    self.info = prepared_set.load(folder, mixture_or_task_name)
    if task_feature_lengths is None:
      task_feature_lengths = self.info.task_feature_lengths
    self.lengths = positions.feature_lengths(task_feature_lengths)
    _check_lengths(self.info, self.lengths, folder)
    self._built_with = {
      'PREPARED_DATA': self.info.fingerprint(),
      'TASK_FEATURE_LENGTHS': self.lengths,
      'split': split,
      'batch_size': batch_size,
      'shuffle': shuffle,
      'seed': seed,
      'pack': pack,
      'num_epochs': num_epochs,
    }
    self._chunks = prepared_set.Chunks(folder, self.info, split)
    self._order = rows.Order(len(self._chunks), seed, shuffle)
    self._end = None if num_epochs is None else num_epochs * len(self._chunks)
    self._pack, self._batch_size = pack, batch_size
    self._shard_index = shard_index
    counts = [
      noise.corrupted_lengths(
        length, self.info.noise_density, self.info.mean_noise_span_length
      )
      for length in range(noise.MIN_CHUNK, self.info.chunk_length + 1)
    ]
    # By length of the chunk; nothing is shorter than two tokens.
    self._corrupted = np.array([(1, 1)] * noise.MIN_CHUNK + counts).T
    self._dataset = grain.experimental.ThreadPrefetchIterDataset(
      _Plans(self._plans).map(self._batch), prefetch_buffer_size=_AHEAD
    )
    self._iterator: Any = None
    self._position = 0

  @property
  def vocab_size(self) -> int:
    """Number of ids of the vocabulary, sentinels included."""
    return self.info.vocabulary.vocab_size

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = iter(self._dataset)
      # Its thread must not be reading when the interpreter ends: that aborts.
      atexit.register(self._iterator.close)
      self._iterator.set_state({'example': self._position})
    following, batch = next(self._iterator)
    # The thread is ahead; this is where the caller is.
    self._position = following
    return batch

  def _used(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of inputs and targets at these positions."""
    lengths = self._chunks.lengths(self._order.chunks(start, stop)[0])
    inputs, targets = self._corrupted[:, lengths]
    return inputs, targets

  def _plans(self, position: int):
    """The batches from a position on."""
    limits = self.lengths['inputs'], self.lengths['targets']
    firsts = rows.first_examples(
      self._used, limits, position, self._end, self._pack
    )
    begun = next(firsts)
    while begun != self._end:
      batch = [begun]
      for first in firsts:
        batch.append(first)
        if len(batch) > self._batch_size:
          break
      begun = batch[-1]
      batch += [begun] * (self._batch_size + 1 - len(batch))  # Empty rows.
      mine = self._shard_index * self._rows
      yield _Plan(tuple(batch[mine : mine + self._rows + 1]), begun)

  def _batch(self, plan: _Plan) -> tuple[int, dict[str, np.ndarray]]:
    """Reads, corrupts and lays out the examples of a plan."""
    begin, end = plan.firsts[0], plan.firsts[-1]
    numbers, streams = [], []
    if begin < end:  # Not so in rows that are all padding.
      numbers, streams = map(np.ndarray.tolist, self._order.chunks(begin, end))
    out = _Rows(self._rows, self.lengths)
    for row, (first, last) in enumerate(
      zip(plan.firsts[:-1], plan.firsts[1:], strict=True)
    ):
      for i in range(first - begin, last - begin):
        out.put(row, *self._example(numbers[i], streams[i]))
    return plan.following, out.features(self._pack)

  def _example(self, number: int, stream: int):
    """Inputs and targets, without EOS, of a chunk and a key; and the EOS."""
    tokens = self._chunks[number]
    mask = noise.random_spans_noise_mask(
      len(tokens),
      stream,
      self.info.noise_density,
      self.info.mean_noise_span_length,
    )
    vocabulary = self.info.vocabulary
    inputs, targets = noise.apply_mask(tokens, mask, vocabulary.vocab_size)
    return inputs, targets, vocabulary.eos_id

  def save(self, directory: str | os.PathLike) -> None:
    """Writes the position to a folder; the first shard does it for all."""
    if self._shard_index == 0:
      state = {'example': self._position, 'built_with': self._built_with}
      folder = epath.Path(directory)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / _POSITION).write_text(checked_json.dumps(state))

  def restore(self, directory: str | os.PathLike) -> None:
    """Goes on with the batch that followed when the position was saved."""
    path = epath.Path(directory) / _POSITION
    if not path.exists() and list(path.parent.glob('data-*.json')):
      raise errors.UserError(
        f'The data position in {path.parent} is that of a seqio task and this'
        ' run reads prepared data: take the gin/data file it was made with, or'
        ' start anew in another MODEL_DIR.'
      )
    example, before = self._read_position(path)
    positions.check_built_alike(directory, before, self._built_with)
    self._iterator = None
    self._position = example

  def padding(self) -> dict[str, np.ndarray]:
    """A batch of nothing, for a host whose shard ends before another's."""
    return _Rows(self._rows, self.lengths).features(self._pack)

  def _read_position(self, path: epath.Path) -> tuple[int, dict]:
    """The example a position stands at, and what it belongs to."""
    last = 2**63 - 1 if self._end is None else self._end
    try:
      # Positions that earlier versions saved have no checksum.
      state, _ = checked_json.loads(path.read_bytes())
      if state.keys() != {'example', 'built_with'}:
        raise ValueError(f'its fields are {sorted(state)}')
      example, before = state['example'], state['built_with']
      if type(example) is not int or not 0 <= example <= last:
        raise ValueError(
          f"'example' is {example!r}, not a whole number from 0 to {last}"
        )
      if not isinstance(before, dict):
        raise ValueError("'built_with' is no object")
    except (OSError, ValueError) as error:
      raise errors.DamagedError(
        f'The data position cannot be read ({errors.reason(error)}): {path} is '
        'damaged.'
      ) from error
    return example, before


def _check_lengths(info: prepared_info.Info, lengths, folder) -> None:
  fits = noise.chunk_length(
    lengths['inputs'],
    lengths['targets'],
    info.noise_density,
    info.mean_noise_span_length,
  )
  if fits < info.chunk_length:
    raise errors.UserError(
      f'TASK_FEATURE_LENGTHS is {lengths!r}, which holds {fits} tokens of'
      f' text, and {os.fspath(folder)} was cut into chunks of'
      f' {info.chunk_length}, for {dict(info.task_feature_lengths)}: take'
      ' these, longer ones, or prepare the data again.'
    )


class _Rows:
  """The arrays of a batch, filled example by example."""

  def __init__(self, count: int, lengths: Mapping[str, int]):
    def zeros(name):
      return np.zeros([count, lengths[name]], np.int32)

    self._inputs, self._targets = zeros('inputs'), zeros('targets')
    self._shifted = zeros('targets')
    self._input_places, self._target_places = zeros('inputs'), zeros('targets')
    self._input_ids, self._target_ids = zeros('inputs'), zeros('targets')
    # Where each row's next example begins, and its segment.
    self._next = [(0, 0, 1)] * count

  def put(self, row: int, inputs, targets, eos: int) -> None:
    """Adds an example behind the ones that a row has."""
    begin, target_begin, segment = self._next[row]
    end = begin + len(inputs)
    self._inputs[row, begin:end] = inputs
    self._inputs[row, end] = eos
    end += 1
    self._input_ids[row, begin:end] = segment
    self._input_places[row, begin:end] = np.arange(end - begin)
    target_end = target_begin + len(targets)
    self._targets[row, target_begin:target_end] = targets
    self._targets[row, target_end] = eos
    self._shifted[row, target_begin + 1 : target_end + 1] = targets
    target_end += 1
    self._target_ids[row, target_begin:target_end] = segment
    places = np.arange(target_end - target_begin)
    self._target_places[row, target_begin:target_end] = places
    self._next[row] = end, target_end, segment + 1

  def features(self, pack: bool) -> dict[str, np.ndarray]:
    """t5x's features."""
    found = {
      'encoder_input_tokens': self._inputs,
      'decoder_target_tokens': self._targets,
      'decoder_input_tokens': self._shifted,
      'decoder_loss_weights': (self._targets > 0).astype(np.int32),
    }
    if pack:
      return found | {
        'encoder_segment_ids': self._input_ids,
        'encoder_positions': self._input_places,
        'decoder_segment_ids': self._target_ids,
        'decoder_positions': self._target_places,
      }
    # As seqio shifts a whole row: the EOS too, below a weight of 0.
    self._shifted[:, 1:] = self._targets[:, :-1]
    return found
