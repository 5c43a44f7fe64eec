"""Batches for training and evaluation, in an order that can be repeated.

A batch is a dict of int32 arrays [batch_size / num_shards, length] with t5x's
names: encoder_input_tokens, decoder_target_tokens, decoder_input_tokens,
decoder_loss_weights and, when packed, encoder_ and decoder_segment_ids (0 is
padding) and _positions. The order and the noise follow from the seed; every
epoch has an order and noise of its own. A saved position holds the state of
the whole pipeline, shuffle buffer included, so that the batch after it is the
one that would have come.
"""

import json
import os

import numpy as np

from t5x_variants import errors
from t5x_variants.data import packing
from t5x_variants.data.base import positions
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import sources

# Batches ready before they are asked for: next() need not wait, and a saved
# position stays small.
_AHEAD = 2
# Other files of the same names would move a position to another place.
_BYTES = 'bytes of files'


def _quick(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Sets up the pipeline to run beside a training step, on few threads."""
  options = tf.data.Options()
  options.deterministic = True
  # Autotuning grows buffers and parallel calls, which costs memory and CPU
  # time and makes the saved position large.
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 2
  options.threading.max_intra_op_parallelism = 1
  return dataset.with_options(options)


class Batches:
  """An endless or finite iterator of batches with a position.

  Attributes:
    vocabulary: seqio's vocabulary of the targets.
    vocab_size: number of ids, sentinels included, of the larger vocabulary
      where inputs and targets have two.
  """

  def __init__(
    self,
    mixture_or_task_name: str,
    task_feature_lengths,
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
    """Builds the pipeline; documents are read when the first batch is.

    Args:
      mixture_or_task_name: a registered seqio task or mixture.
      task_feature_lengths: lengths of 'inputs' and 'targets'.
      split: such as 'train' or 'validation'.
      batch_size: of all shards together.
      shuffle: whether in a random order.
      seed: of the order and of the noise.
      pack: whether several short examples share a row.
      num_epochs: passes over the data; None: without end. The last batch of
        a finite one is filled up with padding, of loss weight zero, so that
        no example is lost.
      shard_index: which of the shards, one a host, is read here.
      num_shards: among how many shards the documents are shared out.
    """
    self._rows = positions.rows_of_shard(batch_size, shard_index, num_shards)
    task = tasks.get(mixture_or_task_name)
    chosen = tasks.of_split(task, split)
    lengths = positions.feature_lengths(
      task_feature_lengths, task.output_features
    )
    # A position means nothing to a pipeline built in another way.
    self._built_with = {
      'MIXTURE_OR_TASK_NAME': mixture_or_task_name,
      'TASK_FEATURE_LENGTHS': lengths,
      'split': split,
      'batch_size': batch_size,
      'shuffle': shuffle,
      'seed': seed,
      'pack': pack,
      'num_epochs': num_epochs,
      _BYTES: sum(
        each.source.size(split)
        for each in chosen
        if isinstance(each.source, sources.DocumentSource)
      ),
    }
    self.vocabulary = task.output_features['targets'].vocabulary
    self.vocab_size = max(
      task.output_features[name].vocabulary.vocab_size
      for name in ('inputs', 'targets')
    )
    self._what = f'{mixture_or_task_name}, split {split!r}'
    self._position = f'data-{shard_index:05d}-of-{num_shards:05d}'
    shard = seqio.ShardInfo(shard_index, num_shards)
    dataset = seqio.get_dataset(
      mixture_or_task_name if num_epochs is None else tasks.to_the_end(task),
      task_feature_lengths=lengths,
      feature_converter=packing.EncDecFeatureConverter(pack=pack),
      dataset_split=split,
      shuffle=shuffle,
      num_epochs=num_epochs,
      shard_info=shard if num_shards > 1 else None,
      seed=seed,
      verbose=False,
    )
    dataset = dataset.batch(self._rows).prefetch(_AHEAD)
    self._spec = dataset.element_spec
    self._iterator = iter(_quick(dataset))
    self._checkpoint = tf.train.Checkpoint(iterator=self._iterator)
    self._empty = True

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch = next(self._iterator)
    except StopIteration:
      if self._empty:
        raise errors.UserError(
          f'The data of {self._what} has no example: the documents of this'
          " split, or of this host's shard of it, are too few or too short."
        ) from None
      raise
    except tf.errors.OpError as error:
      raise errors.UserError(
        f'The data of {self._what} cannot be read: {errors.reason(error)}.'
        ' Check the files, then start the same command again.'
      ) from error
    self._empty = False
    return {name: self._filled(value.numpy()) for name, value in batch.items()}

  def _filled(self, value: np.ndarray) -> np.ndarray:
    missing = self._rows - value.shape[0]
    return np.pad(value, [(0, missing), (0, 0)]) if missing else value

  def padding(self) -> dict[str, np.ndarray]:
    """A batch of nothing, for a host whose shard ends before another's."""
    return {
      name: np.zeros([self._rows, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
      for name, spec in self._spec.items()
    }

  def save(self, directory: str | os.PathLike) -> None:
    """Writes the position to a folder, in files named after the shard."""
    tf.io.gfile.makedirs(os.fspath(directory))
    path = os.path.join(directory, self._position)
    self._checkpoint.write(path)
    with tf.io.gfile.GFile(path + '.json', 'w') as file:
      file.write(json.dumps(self._built_with))

  def restore(self, directory: str | os.PathLike) -> None:
    """Goes on with the batch that followed when the position was saved."""
    path = os.path.join(directory, self._position)
    if not tf.io.gfile.exists(path + '.json'):
      if tf.io.gfile.exists(os.path.join(directory, 'position.json')):
        raise errors.UserError(
          f'The data position in {os.fspath(directory)} is that of prepared'
          ' data and this run reads a seqio task: take the gin/data file it'
          ' was made with, or start anew in another MODEL_DIR.'
        )
      raise errors.UserError(
        f'There is no data position {self._position} in'
        f' {os.fspath(directory)}: each host has its own, and as many hosts'
        ' must read as wrote.'
      )
    try:
      with tf.io.gfile.GFile(path + '.json', 'rb') as file:
        before = dict(json.loads(file.read()))
      # Positions that earlier versions saved lack it.
      before.setdefault(_BYTES, self._built_with[_BYTES])
      positions.check_built_alike(directory, before, self._built_with)
      self._checkpoint.read(path).assert_consumed()
    except errors.UserError:
      raise
    except Exception as error:
      # Which exception a damaged file ends in depends on the file.
      raise errors.DamagedError(
        f'The data position cannot be read ({errors.reason(error)}): {path} is'
        ' damaged.'
      ) from error
    self._empty = False
