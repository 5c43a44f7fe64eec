"""RAFT's low-data protocol: a few examples of a task, drawn by a seed.

Out of a task's training split N training and M development examples are drawn,
disjoint; its official development set becomes the test set. As in RAFT's
experiments classes are not balanced.

Each example gets a number, a hash of the seed and of the example itself, and
those of the N + M lowest numbers are drawn. So a draw depends on the seed and
the task's data alone: not on the order of files, the process, the model or its
variant, and two runs with one seed compare what they are meant to compare.

Paper: Fang et al. 2022, RAFT (arXiv:2208.14111), section 4.
"""

import collections
import hashlib
import heapq
from collections.abc import Sequence

import numpy as np

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.tasks import registry as tasks

_as_is = tf.autograph.experimental.do_not_convert
SPLITS = ('train', 'validation', 'test')


def task(
  mixture_or_task_name: str,
  seed: int,
  train_examples: int = 100,
  validation_examples: int = 100,
  train_split: str = 'train',
  test_split: str | Sequence[str] = 'validation',
) -> str:
  """Registers a task with few examples; again the same, again the name.

  Args:
    mixture_or_task_name: of a registered task, which keeps its preprocessors
      and metrics.
    seed: of the draw.
    train_examples: drawn for the split 'train'.
    validation_examples: drawn for 'validation'.
    train_split: what they are drawn from.
    test_split: what becomes the split 'test'; several are joined.

  Returns:
    The name of the new task.

  Raises:
    errors.UserError: no such task or split, or a mixture, whose tasks are to be
      tuned one by one.
  """
  if not isinstance(seed, int):
    raise errors.UserError(
      f'LOW_DATA_SEED is {seed!r}; it must be a whole number.'
    )
  errors.check_positive('LOW_DATA_TRAIN', train_examples)
  errors.check_positive('LOW_DATA_VALIDATION', validation_examples)
  found = tasks.get(mixture_or_task_name)
  if not isinstance(found, seqio.Task):
    raise errors.UserError(
      f'MIXTURE_OR_TASK_NAME is {mixture_or_task_name!r}, which is a mixture:'
      ' the low-data protocol is of one task a run, so take one of'
      f' {[t.name for t in found.tasks]}.'
    )
  test_splits = [test_split] if isinstance(test_split, str) else [*test_split]
  for split in (train_split, *test_splits):
    if split not in found.splits:
      raise errors.UserError(
        f'The split is {split!r}; {mixture_or_task_name} has'
        f' {sorted(found.splits)}.'
      )
  sizes = f'{train_examples}_{validation_examples}'
  splits = '_'.join([train_split, *test_splits])
  name = f'{mixture_or_task_name}_low_{sizes}_of_{splits}_seed_{seed}'
  name = name.replace('-', 'minus')
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      name,
      source=Drawn(
        found.source,
        seed,
        {'train': train_examples, 'validation': validation_examples},
        train_split,
        test_splits,
      ),
      output_features=found.output_features,
      preprocessors=found.preprocessors,
      postprocess_fn=found.postprocessor,
      metric_fns=found.metric_fns,
      metric_objs=tasks.metric_objs(found),
      # The source shuffles; another buffer would mix epochs of so few.
      shuffle_buffer_size=None,
    )
  return name


class Drawn(seqio.DataSource):
  """Examples drawn from a source; its test set whole."""

  def __init__(self, source, seed, counts, train_split, test_splits):
    """Draws nothing yet.

    Args:
      source: of seqio.
      seed: of the draw.
      counts: examples of 'train' and of 'validation'.
      train_split: of `source`.
      test_splits: of `source`.
    """
    self._source, self._seed, self._counts = source, seed, dict(counts)
    self._train_split, self._test_splits = train_split, list(test_splits)
    self._drawn = None
    super().__init__(splits=SPLITS, performs_internal_shuffling=True)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: examples are shared out."""
    return True

  def list_shards(self, split: str):
    """One, whatever the split."""
    return [split]

  def num_input_examples(self, split: str) -> None:
    """Not said: seqio would keep a small split, and with it its order."""
    return None

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """The examples of a split; see seqio.DataSource."""
    del unused
    shard = shard_info or seqio.ShardInfo(0, 1)
    if split == 'test':
      parts = [
        self._source.get_dataset(split=name, shuffle=shuffle, seed=seed)
        for name in self._test_splits
      ]
      whole = parts[0]
      for part in parts[1:]:
        whole = whole.concatenate(part)
      return whole.shard(shard.num_shards, shard.index)
    if self._drawn is None:
      self._drawn = self._draw()
    spec, rows = self._drawn
    rows = tf.constant(rows[split])
    places = tf.data.Dataset.range(shard.index, rows.shape[0], shard.num_shards)
    if shuffle:
      places = places.shuffle(rows.shape[0], seed=seed)
    return places.map(
      _as_is(lambda place: _unpacked(spec, tf.gather(rows, place)))
    )

  def _draw(self):
    """The form of an example, and rows of serialized tensors by split.

    A row of strings, unlike examples of changing shapes, can be held as a
    constant, so that a saved position of the pipeline stays small and exact.
    """
    dataset = self._source.get_dataset(split=self._train_split, shuffle=False)
    spec = dataset.element_spec
    if not all(isinstance(s, tf.TensorSpec) for s in tf.nest.flatten(spec)):
      raise errors.UserError(
        'The examples have ragged or sparse tensors, which cannot be drawn:'
        ' make them dense in the task.'
      )
    wanted = sum(self._counts.values())
    seen: collections.Counter = collections.Counter()

    def numbered():
      for number, example in enumerate(dataset):
        parts = tf.nest.flatten(example)
        content = _digest(repr([_value(part) for part in parts]).encode())
        yield rank(self._seed, content, seen[content]), number, parts
        seen[content] += 1

    lowest = heapq.nsmallest(wanted, numbered())
    if len(lowest) < wanted:
      raise errors.UserError(
        f'The split {self._train_split!r} has {len(lowest)} examples and'
        f' {wanted} are to be drawn: lower LOW_DATA_TRAIN or'
        ' LOW_DATA_VALIDATION.'
      )
    rows = np.array(
      [
        [tf.io.serialize_tensor(part).numpy() for part in parts]
        for *_, parts in lowest
      ],
      object,
    )
    found = {}
    for split, count in self._counts.items():
      found[split], rows = rows[:count], rows[count:]
    return spec, found


def rank(seed: int, content: bytes, before: int = 0) -> bytes:
  """Where an example stands in the order of a seed.

  Args:
    seed: of the draw.
    content: a digest of the example.
    before: how many equal ones came before, so that each has its own place.
  """
  return _digest(f'{seed} {before} '.encode() + content)


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=16).digest()


def _value(tensor) -> tuple:
  """What a tensor says, in a form that no version of a library changes."""
  found = np.asarray(tensor)
  return tensor.dtype.name, found.shape, found.tolist()


def _unpacked(spec, row):
  """An example from a row of its serialized tensors."""
  parts = []
  for place, form in enumerate(tf.nest.flatten(spec)):
    part = tf.io.parse_tensor(row[place], form.dtype)
    parts.append(tf.ensure_shape(part, form.shape))
  return tf.nest.pack_sequence_as(spec, parts)
