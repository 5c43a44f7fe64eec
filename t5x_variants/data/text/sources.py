"""seqio data sources of {'text': string}: documents of files, and of TFDS.

Files hold no splits of their own: a hash of each document's bytes puts it
into 'validation' or 'train', the same in every run, unless validation files
are named. A corpus of up to 32 MiB is held in memory and shuffled as a whole;
a larger one streams from up to 16 files at a time. Either way the order
follows from the seed and a saved position continues exactly, and several
hosts share the documents without overlap. What is skipped is in `documents`.
"""

import collections
import contextlib
import functools
import logging
import os
import threading

import numpy as np

from t5x_variants import errors, paths
from t5x_variants.data.base._tensorflow import seqio, tf, tfds
from t5x_variants.data.text import documents as documents_lib

# Bytes of text held in memory: the corpus's own cost on every host.
IN_MEMORY = 1 << 25
FILES_AT_A_TIME = 16
_OPEN_FILES = 64
_PARTS = 1024
_as_is = tf.autograph.experimental.do_not_convert
# No such data set; nothing to download from; not enough room or permission.
_TFDS_ERRORS = (
  ValueError,
  AssertionError,
  OSError,
  ImportError,
  tf.errors.OpError,
  tfds.download.DownloadError,
)
_logger = logging.getLogger('t5x_variants')


def _open(path: str):
  if paths.is_remote(path):
    return tf.io.gfile.GFile(path, 'rb')
  return documents_lib.local_open(path)


@contextlib.contextmanager
def _reading(path: str):
  """Turns what a file that has gone or broken raises into a sentence."""
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    raise errors.UserError(
      f'The file {path!r} cannot be read: {errors.reason(error)}. It was there'
      ' when the pattern was looked up; put it back, or start again without it.'
    ) from error


class DocumentSource(seqio.DataSource):
  """Documents of files as a seqio data source; made by the functions below.

  Attributes:
    key: a string that tells this source from every other one.
  """

  def __init__(self, files, text_format, field, validation_fraction, name):
    self._files = files
    self._format, self._field = text_format, field
    self._fraction = validation_fraction
    self.name = name
    self.key = repr(
      (name, sorted(files.items()), text_format, field, validation_fraction)
    )
    self._idle = collections.OrderedDict()
    self._lock = threading.Lock()
    self._said = set()
    super().__init__(splits=('train', 'validation'))

  def __repr__(self):
    return f'{type(self).__name__}({self.key})'

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: documents are shared out, not files."""
    return True

  def list_shards(self, split: str):
    """The files of a split."""
    return self._files.get(split, self._files['train'])

  def size(self, split: str) -> int:
    """Bytes of a split's files, but for those elsewhere: asking takes time."""
    found = 0
    for path in self.list_shards(split):
      if not paths.is_remote(path):
        with _reading(path):
          found += os.path.getsize(path)
    return found

  def numbered_documents(self):
    """Yields (file, line number from 1, document) of all files of lines."""
    for split in self._files:
      for path in self.list_shards(split):
        with _reading(path):
          for line, document in documents_lib.numbered(
            path, self._field, _open
          ):
            yield path, line, document

  def parts(self, split: str) -> int:
    """Into how many shards the documents fall without reading files twice."""
    files = len(self.list_shards(split))
    if self._survey(split):
      return 1
    return files if files <= _PARTS else min(files // 8, _PARTS)

  def _of_split(self, split: str, found: list[bytes]) -> list[bytes]:
    if 'validation' in self._files:
      return found
    limit = int(self._fraction * 2**64)
    wanted = split == 'validation'
    return [
      document
      for document in found
      if (documents_lib.uniform_hash(document) < limit) == wanted
    ]

  def _blocks(self, split: str, skipped: collections.Counter):
    """Yields the documents of all files of a split, block by block."""
    for path in self.list_shards(split):
      with _reading(path):
        yield from documents_lib.read_file(
          path, self._format, self._field, skipped, _open
        )

  @functools.cache  # noqa: B019, sources live as long as their task.
  def _survey(self, split: str) -> bool:
    """Whether the files of a split fit in memory; refuses useless ones."""
    files = self.list_shards(split)
    # A file elsewhere is streamed, whatever its size.
    small = self.size(split) <= IN_MEMORY and not any(
      map(paths.is_remote, files)
    )
    skipped: collections.Counter = collections.Counter()
    held = usable = 0
    for found in self._blocks(split, skipped):
      usable += len(found)
      held += sum(map(len, found))
      if held > IN_MEMORY or (usable and not small):
        self._say_once(skipped)
        return False
    what = ', '.join(f'{n} {reason}' for reason, n in sorted(skipped.items()))
    if not usable:
      raise errors.UserError(
        f'None of the {len(files)} files of {self.name} holds a usable'
        f' document (skipped: {what or "nothing but white space"}): check the'
        f' files, {files[0]!r} for one.'
      )
    if what:
      _logger.warning('%s: skipped %s; kept %d', self.name, what, usable)
    return True

  def _say_once(self, skipped):
    for reason in skipped:
      if reason not in self._said:
        self._said.add(reason)
        _logger.warning('%s: skipping %s', self.name, reason)

  @functools.cache  # noqa: B019
  def _in_memory(self, split: str) -> tf.Tensor:
    kept = []
    for found in self._blocks(split, collections.Counter()):
      kept.extend(self._of_split(split, found))
    if not kept:
      raise errors.UserError(
        f'The source {self.name} has no document for the split {split!r}: raise'
        f' VALIDATION_FRACTION, which is {self._fraction}, or name files of its'
        ' own (VALIDATION_FILES or VALIDATION_PAIRS).'
      )
    return tf.constant(kept)

  def _read(self, path: str, offset: int, split: str, shard: seqio.ShardInfo):
    """One block: its documents, and where the next begins (-1: nowhere)."""
    with self._lock:
      stream = self._idle.pop((path, offset), None)
    stream = stream or documents_lib.Stream(path, offset, _open)
    skipped: collections.Counter = collections.Counter()
    found = documents_lib.read_block(stream, self._format, self._field, skipped)
    with self._lock:
      self._say_once(skipped)
      if found is None:
        stream.close()
      else:
        self._idle[path, stream.offset] = stream
        if len(self._idle) > _OPEN_FILES:
          self._idle.popitem(last=False)[1].close()
    if found is None:
      return np.array([], object), np.int64(-1)
    if shard.num_shards > 1:
      # Of the reversed text, because the hash of the text picks the split.
      found = [
        document
        for document in found
        if documents_lib.uniform_hash(document[::-1]) % shard.num_shards
        == shard.index
      ]
    kept = self._of_split(split, found)
    return np.array(kept, object), np.int64(stream.offset)

  def _stream(self, path, split: str, shard: seqio.ShardInfo):
    """The documents of one file, its position being that of a block."""

    def read(path, offset):
      return self._read(path.decode(), int(offset), split, shard)

    @_as_is
    def step(offset, _):
      # Stateless as far as results go: a function of path and offset.
      found, following = tf.numpy_function(
        read, [path, offset], [tf.string, tf.int64], stateful=False
      )
      found.set_shape([None])
      following.set_shape([])
      return following, (found, following)

    blocks = tf.data.Dataset.counter().scan(tf.constant(0, tf.int64), step)
    blocks = blocks.take_while(_as_is(lambda _, following: following >= 0))
    return blocks.map(_as_is(lambda found, _: found)).unbatch()

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """Documents of a split; see seqio.DataSource."""
    del unused
    if split not in self.splits:
      raise errors.UserError(
        f'The split is {split!r}; {self.name} has {list(self.splits)}.'
      )
    shard = shard_info or seqio.ShardInfo(0, 1)
    if self._survey(split):
      texts = self._in_memory(split)
      places = tf.data.Dataset.range(
        shard.index, texts.shape[0], shard.num_shards
      )
      if shuffle:
        # Places instead of documents keep the saved position small.
        places = places.shuffle(texts.shape[0], seed=seed)
      return places.map(lambda place: {'text': tf.gather(texts, place)})
    files = list(self.list_shards(split))
    num_shards = shard.num_shards
    if len(files) % num_shards == 0 or len(files) >= 8 * num_shards:
      # Whole files, so that each is read by one host; about as many a host.
      files, shard = files[shard.index :: num_shards], seqio.ShardInfo(0, 1)
    names = tf.data.Dataset.from_tensor_slices(files)
    if shuffle:
      names = names.shuffle(len(files), seed=seed)
    texts = names.interleave(
      _as_is(lambda path: self._stream(path, split, shard)),
      cycle_length=FILES_AT_A_TIME if shuffle else 1,
      block_length=1,
    )
    return texts.map(lambda text: {'text': text})


class TfdsSource(seqio.TfdsDataSource):
  """A TFDS dataset in a fresh order, of which only the text is read.

  Without a field, which benchmarks have no single one of, all of it is.
  """

  def __init__(self, name, data_dir, field, download):
    self.name = name.split(':')[0].split('/')[0]
    self.key = repr((name, data_dir, field))
    self._field, self._where = field, (name, data_dir)
    self._download = download
    super().__init__(
      tfds_name=name, tfds_data_dir=data_dir, read_only=not download
    )

  @property
  def splits(self):
    """Those that are prepared; refuses a dataset of which none is."""
    name, folder = self._where
    try:
      builder = self.tfds_dataset.builder
      if self._download and not builder.info.splits:
        builder.download_and_prepare()
      found = tuple(builder.info.splits)
    except _TFDS_ERRORS as error:
      why = (str(error).splitlines() or [repr(error)])[0]
      raise errors.UserError(f'TFDS cannot open {name!r}: {why}.') from error
    if not found:
      raise errors.UserError(
        f'The dataset {name} is not prepared in'
        f' {folder or "~/tensorflow_datasets"}: point TFDS_DATA_DIR at the'
        ' folder that holds it, or read the files it is made of (of C4:'
        ' gin/data/c4_json.gin).'
      )
    return found

  @property
  def features(self):
    """TFDS's description of the fields."""
    return self.tfds_dataset.info.features

  def num_input_examples(self, split: str) -> None:
    """Unknown: seqio would cache a small split, and with it its order."""
    return None

  def get_dataset(self, *args, **kwargs) -> tf.data.Dataset:
    """Documents of a split; see seqio.DataSource."""
    dataset = super().get_dataset(*args, **kwargs)
    field = self._field
    if field is None:
      return dataset
    if field not in dataset.element_spec:
      raise errors.UserError(
        f'The dataset {self._where[0]} has no feature {field!r}: choose one of'
        f' {sorted(dataset.element_spec)}.'
      )
    return dataset.map(lambda example: {'text': example[field]})
