"""From a seqio task to prepared data on disk (see `format`).

The task is run up to its tokens; where it would corrupt spans, its chunks are
written instead. The work falls into shards that depend on nothing but the task
and their number: they are written in any order, by any number of processes,
and byte for byte the same each time. A shard appears under its name when it is
whole, its lengths after it, and info.json when all are there; what stands
there after an interruption is kept and the rest goes on.
"""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from array_record.python import array_record_module

from t5x_variants import errors, paths
from t5x_variants.data.base import positions
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.prepared import format as prepared_set
from t5x_variants.data.prepared import info as prepared_info
from t5x_variants.data.tasks import noise
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.tasks import span_corruption as corruption

SPLITS = ('train', 'validation')
PROGRESS = 'in-progress'
_OPTIONS = 'group_size:1,zstd:1'
_DOCUMENTS = 64
_LIBRARIES = ('array_record', 'numpy', 'seqio', 'tensorflow')
_MODEL = 'vocabulary.model'
_EOS_STEPS = {
  tasks.append_eos,
  seqio.preprocessors.append_eos,
  seqio.preprocessors.append_eos_after_trim,
}


@dataclasses.dataclass(frozen=True)
class Preparation:
  """All that decides what is written.

  Attributes:
    output: the folder.
    info: as it will be written, with splits yet to be filled.
    shards: how many files each split falls into.
  """

  output: str
  info: prepared_info.Info
  shards: dict[str, int]

  def work(self) -> list[tuple[str, int]]:
    """Every shard, as split and number."""
    return [(s, i) for s, count in self.shards.items() for i in range(count)]

  def path(self, *names: str) -> str:
    """A file below the output folder."""
    return os.path.join(self.output, *names)

  def progress(self, split: str, index: int) -> str:
    """The lengths of a shard, which say that it is whole."""
    return self.path(PROGRESS, f'{split}-{index:05d}.lengths')


def configure(
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
  output: str,
) -> Preparation:
  """Looks at a task and says what is to be written; reads nothing yet.

  Args:
    mixture_or_task_name: of a registered seqio task with span corruption.
    task_feature_lengths: lengths of 'inputs' and 'targets'.
    output: the folder to be; gs:// works too.

  Returns:
    The work.
  """
  task = _task(mixture_or_task_name)
  _, options = _up_to_tokens(task)
  defaults = inspect.signature(corruption.corrupt_spans).parameters
  density, mean, joined = (
    options.get(name, defaults[name].default)
    for name in ('noise_density', 'mean_noise_span_length', 'documents_joined')
  )
  given = positions.feature_lengths(task_feature_lengths)
  lengths = {name: given[name] for name in ('inputs', 'targets')}
  length = noise.chunk_length(given['inputs'], given['targets'], density, mean)
  vocabulary = task.output_features['targets'].vocabulary
  corruption.check_sentinels(vocabulary, length, density, mean)
  info = prepared_info.Info(
    task=mixture_or_task_name,
    task_feature_lengths=lengths,
    chunk_length=length,
    noise_density=density,
    mean_noise_span_length=mean,
    documents_joined=joined,
    vocabulary=_described(vocabulary),
    splits={},
    libraries={n: importlib.metadata.version(n) for n in _LIBRARIES},
  )
  shards = {
    split: _parts(task.source, split)
    for split in SPLITS
    if split in task.splits
  }
  return Preparation(os.path.expanduser(output), info, shards)


def _task(name: str) -> seqio.Task:
  try:
    return seqio.TaskRegistry.get(name)
  except ValueError as error:
    raise errors.UserError(
      f'MIXTURE_OR_TASK_NAME is {name!r}, which is no registered task: take a'
      ' file of gin/data, or import the module that registers it (a mixture is'
      ' prepared task by task).'
    ) from error


def _up_to_tokens(task: seqio.Task):
  """The preprocessors before span corruption, and its own options."""
  steps = [getattr(step, 'func', step) for step in task.preprocessors]
  if corruption.corrupt_spans not in steps:
    raise errors.UserError(
      f'The task {task.name!r} has no span corruption of t5x_variants'
      ' (tasks.span_corruption): only such tasks can be prepared, others are'
      ' read by seqio.'
    )
  place = steps.index(corruption.corrupt_spans)
  # The reader corrupts spans and ends both sides with EOS, no more.
  ends = all(feature.add_eos for feature in task.output_features.values())
  rest = steps[place + 1 :]
  if not ends or len(rest) != 1 or rest[0] not in _EOS_STEPS:
    raise errors.UserError(
      f'The task {task.name!r} does something else after span corruption than'
      ' to append EOS to inputs and targets: it cannot be prepared, but it can'
      ' be read by seqio.'
    )
  return task.preprocessors[:place], getattr(
    task.preprocessors[place], 'keywords', {}
  )


def _parts(source, split: str) -> int:
  if hasattr(source, 'parts'):
    return source.parts(split)
  return max(1, min(len(source.list_shards(split)), 1024))


def _described(vocabulary) -> prepared_info.Vocabulary:
  path = getattr(vocabulary, 'sentencepiece_model_file', '')
  found = prepared_info.Vocabulary(
    kind=type(vocabulary).__name__,
    vocab_size=vocabulary.vocab_size,
    extra_ids=vocabulary.extra_ids or 0,
    eos_id=vocabulary.eos_id,
    file=_MODEL if path else '',
    hash='',
  )
  return dataclasses.replace(found, hash=found.hashed(_bytes(path)))


def _bytes(path: str) -> bytes:
  if not path:
    return b''
  with tf.io.gfile.GFile(path, 'rb') as file:
    return file.read()


@contextlib.contextmanager
def _writing(output: str):
  """Turns what a full or read-only disk raises into a sentence."""
  try:
    yield
  except (OSError, RuntimeError, tf.errors.OpError) as error:
    raise errors.UserError(
      f'Cannot write to {output}: {errors.reason(error)}. What is whole is'
      ' kept and the set does not count as prepared; free some space or make'
      ' the folder writable, then run the same command again.'
    ) from error


def _put(path: str, data: bytes) -> None:
  """`paths.write` on any storage that TensorFlow reaches."""
  temporary = f'{path}.{os.getpid()}'
  with tf.io.gfile.GFile(temporary, 'wb') as file:
    file.write(data)
  tf.io.gfile.rename(temporary, path, overwrite=True)


def begin(work: Preparation) -> list[tuple[str, int]] | None:
  """Makes the folder, or takes up what is there.

  Args:
    work: from `configure`.

  Returns:
    The shards that are missing; None where the whole set stands already.

  Raises:
    errors.UserError: the folder holds another set, or cannot be written.
  """
  if tf.io.gfile.exists(work.path(prepared_set.INFO)):
    _finished_before(work)
    return None
  plan = dataclasses.asdict(dataclasses.replace(work.info, libraries={})) | {
    'shards': work.shards
  }
  path = work.path(PROGRESS, 'plan.json')
  with _writing(work.output):
    if tf.io.gfile.exists(path):
      begun = _begun(path)
      if begun != plan:
        raise errors.UserError(
          f'The folder {work.output} holds the beginning of another set'
          f' ({_difference(begun, plan)}): give another --output, or remove'
          ' the folder.'
        )
    tf.io.gfile.makedirs(work.path(PROGRESS))
    _put(path, json.dumps(plan).encode())
  there = set(tf.io.gfile.listdir(work.path(PROGRESS)))
  return [
    shard
    for shard in work.work()
    if os.path.basename(work.progress(*shard)) not in there
  ]


def _begun(path: str) -> dict:
  try:
    return dict(json.loads(_bytes(path)))
  except (ValueError, TypeError) as error:
    raise errors.UserError(
      f'The file {path} is damaged: remove the folder and start again.'
    ) from error


def _finished_before(work: Preparation) -> None:
  try:
    data = _bytes(work.path(prepared_set.INFO))
    found = prepared_info.from_json(data).fields()
  except ValueError as error:
    raise errors.UserError(
      f'The file {work.path(prepared_set.INFO)} is damaged or of another'
      f' version ({error}): give another --output, or remove the folder.'
    ) from error
  wanted = work.info.fields()
  same: dict = {'splits': {}, 'libraries': {}}
  if found | same != wanted | same:
    raise errors.UserError(
      f'The folder {work.output} holds another set'
      f' ({_difference(found | same, wanted | same)}): give another --output,'
      ' or remove the folder.'
    )


def _difference(found: dict, wanted: dict) -> str:
  for name, value in wanted.items():
    if found.get(name) != value:
      return f'its {name} is {found.get(name)!r} and here it is {value!r}'
  return 'of another version'


def write_shard(
  work: Preparation,
  split: str,
  index: int,
  report: Callable[[int], None] = lambda examples: None,
) -> None:
  """Writes one shard under its name, then its lengths.

  Args:
    work: from `configure`.
    split: the shard's split.
    index: its number.
    report: told of the examples written since it was told before.
  """
  documents = _documents(work, split, index)
  chunks = noise.chunks(
    documents, work.info.chunk_length, work.info.documents_joined
  )
  name = prepared_set.shard_file(split, index, work.shards[split])
  with contextlib.ExitStack() as stack:
    where, remote = work.path(PROGRESS), paths.is_remote(work.output)
    if remote:
      where = stack.enter_context(tempfile.TemporaryDirectory())
    temporary = os.path.join(where, f'{name}.{os.getpid()}')
    lengths = _write_records(work, temporary, chunks, report)
    with _writing(work.output):
      if len(lengths) and remote:
        tf.io.gfile.copy(temporary, work.path(name), overwrite=True)
      elif len(lengths):
        os.replace(temporary, work.path(name))
      _put(work.progress(split, index), lengths.tobytes())


def _write_records(work, path: str, chunks, report) -> np.ndarray:
  """Writes chunks, so many to a record; returns their lengths."""
  dtype, lengths, writer = work.info.dtype, [], None
  while record := [
    chunk.astype(dtype)
    for chunk in itertools.islice(chunks, prepared_set.CHUNKS_PER_RECORD)
  ]:
    with _writing(work.output):
      writer = writer or array_record_module.ArrayRecordWriter(path, _OPTIONS)
      writer.write(b''.join(record))
    lengths.append(np.array([len(chunk) for chunk in record], dtype))
    report(len(record))
  if writer is None:
    return np.array([], dtype)
  with _writing(work.output):
    writer.close()
    reader = array_record_module.ArrayRecordReader(path)
    if reader.num_records() != len(lengths):
      raise OSError(f'{path} lacks records that were written')
    reader.close()
  return np.concatenate(lengths)


def _documents(
  work: Preparation, split: str, index: int
) -> Iterator[np.ndarray]:
  """The tokens of each document of a shard, in order."""
  task, count = _task(work.info.task), work.shards[split]
  steps, _ = _up_to_tokens(task)
  dataset = task.source.get_dataset(
    split,
    shuffle=False,
    shard_info=seqio.ShardInfo(index, count) if count > 1 else None,
  )
  for step in steps:
    step = seqio.utils.add_kwargs_to_transform(
      step,
      sequence_length=dict(work.info.task_feature_lengths),
      output_features=task.output_features,
    )
    dataset = step(dataset)
  dataset = dataset.map(
    tf.autograph.experimental.do_not_convert(
      lambda example: tf.cast(example['targets'], tf.int32)
    )
  )
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  # In lots: a call to TensorFlow costs more than a short document.
  dataset = dataset.ragged_batch(_DOCUMENTS).with_options(options)
  try:
    for lot in dataset:
      tokens, ends = lot.values.numpy(), lot.row_splits.numpy()
      yield from np.split(tokens, ends[1:-1])
  except tf.errors.OpError as error:
    raise errors.UserError(
      f'The documents of {work.info.task}, split {split!r}, cannot be read:'
      f' {errors.reason(error)}. What is whole is kept; check the files,'
      ' then run the same command again.'
    ) from error


def finish(work: Preparation) -> prepared_info.Info:
  """Joins the lengths and writes info.json: from then on the set counts.

  Args:
    work: of which every shard has been written.

  Returns:
    The complete description.
  """
  with _writing(work.output):
    splits = {split: _finish_split(work, split) for split in work.shards}
    if work.info.vocabulary.file:
      vocabulary = _task(work.info.task).output_features['targets'].vocabulary
      model = _bytes(vocabulary.sentencepiece_model_file)
      _put(work.path(work.info.vocabulary.file), model)
    info = dataclasses.replace(work.info, splits=splits)
    _put(work.path(prepared_set.INFO), info.to_json().encode())
    tf.io.gfile.rmtree(work.path(PROGRESS))
  return info


def _finish_split(work: Preparation, split: str) -> prepared_info.Split:
  dtype, count = work.info.dtype, work.shards[split]
  shards, tokens, checksum = [], 0, 0
  whole = work.path(PROGRESS, prepared_set.lengths_file(split))
  with tf.io.gfile.GFile(whole, 'wb') as file:
    for index in range(count):
      data = _bytes(work.progress(split, index))
      lengths = np.frombuffer(data, dtype)
      name = prepared_set.shard_file(split, index, count)
      size = tf.io.gfile.stat(work.path(name)).length if data else 0
      shards.append(prepared_info.Shard(name, len(lengths), size))
      tokens += int(lengths.sum(dtype=np.int64))
      checksum = zlib.crc32(data, checksum)
      file.write(data)
  if not tokens:
    raise errors.UserError(
      f'The task {work.info.task!r} has no example in the split {split!r}: its'
      ' documents are too few or too short.'
    )
  lengths_file = work.path(prepared_set.lengths_file(split))
  tf.io.gfile.rename(whole, lengths_file, overwrite=True)
  examples = sum(shard.examples for shard in shards)
  # What holds nothing has no file.
  kept = tuple(shard for shard in shards if shard.examples)
  return prepared_info.Split(examples, tokens, kept, checksum)
