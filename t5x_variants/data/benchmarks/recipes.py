"""Benchmarks' examples in memory: of official files, or of TFDS.

A benchmark's task is told by a `Recipe`: which files or which TFDS dataset
hold its rows, how a row is read, and how it becomes examples of text. Rows of
both kinds are dicts with the same names, so that the texts are the same, too.
An example has the strings `inputs` and `targets`, and `gold` where metrics
compare something else than the target's text: JSON of what they compare.

Rows of a TSV file that lack a column or the label, as a few of QQP do, are
skipped and said, as in TFDS. Whatever else is wrong is an error with its place.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.text import sources

_logger = logging.getLogger('t5x_variants')
# A batch of rows is read from TFDS far sooner than its rows one by one.
_TFDS_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one task of a benchmark becomes text.

  Attributes:
    files: path below the benchmark's folder, by split.
    read: (path) -> (line number or name, row or None); None is skipped.
    tfds: dataset with config and version.
    convert: (row, split) -> examples; raises errors.UserError.
    metric_fns: functions of (targets, predictions).
    size: training examples, T5's mixing rate.
    tfds_splits: TFDS's name of a split, where it has another.
    postprocess_fn: seqio's.
  """

  files: Mapping[str, str]
  read: Callable
  tfds: str
  convert: Callable
  metric_fns: tuple
  size: int
  tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  postprocess_fn: Callable | None = None


def gold(text, *, example=None, is_target: bool = False):
  """A postprocess_fn: the target's `gold`, a prediction's text stripped."""
  if is_target:
    return json.loads(example['gold'])
  return text.strip()


def label_text(value, labels, coded: bool = False) -> str:
  """A row's label as the target's text.

  Args:
    value: the text itself; true or false of JSON for 'True' and 'False'; or
      with `coded` its number, as int or text.
    labels: all texts, in the order of their numbers.
    coded: whether numbers are allowed.

  Returns:
    One of `labels`.

  Raises:
    errors.UserError: any other value.
  """
  if isinstance(value, bool):
    value = str(value)
  if value in labels:
    return value
  codes = {str(code): text for code, text in enumerate(labels)}
  if coded and str(value) in codes:
    return codes[str(value)]
  allowed = [
    f'{code} ({text})' if coded else text for code, text in codes.items()
  ]
  raise errors.UserError(
    f'The label is {value!r}; it must be one of {allowed}.'
  )


def fields_to_text(
  row, split: str, *, prompt: str, names, labels, coded: bool = False
) -> list[dict]:
  """A row of text fields and a label, as T5 writes most tasks.

  Args:
    row: strings by name, and `label`.
    split: unused.
    prompt: the first word, such as 'cola'.
    names: of the fields, in order; each is followed by a colon and its text.
      One that ends in '?' is left out where the row lacks it.
    labels: see `label_text`.
    coded: see `label_text`.

  Returns:
    One example: 'cola sentence: It is so.' -> 'acceptable'.
  """
  del split
  parts = [prompt]
  for name in names:
    field = name.removesuffix('?')
    if field in row or field == name:
      parts.append(f'{field}: {row[field]}')
  return [
    {
      'inputs': ' '.join(parts),
      'targets': label_text(row['label'], labels, coded),
    }
  ]


def read_text(path: str) -> str:
  """A whole file in UTF-8, with or without a byte order mark."""
  with tf.io.gfile.GFile(path, 'rb') as file:
    data = file.read()
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'The file {path} is no UTF-8: {errors.reason(error)}.'
    ) from error


def tsv_rows(path: str, columns: Mapping[str, str | int]) -> Iterator[tuple]:
  """Rows of a file of columns between tabs; quotation marks mean nothing.

  Args:
    path: of the file.
    columns: the column of each name, by its heading; numbers: the file has no
      headings.

  Yields:
    Line number from 1, and {name: text}, or None for a row that lacks one.
  """
  # As text files are read: \r\n and \r end lines, too, but not U+2028.
  text = read_text(path).replace('\r\n', '\n').replace('\r', '\n')
  lines = text.removesuffix('\n').split('\n')
  start = 0
  places = {k: x for k, x in columns.items() if isinstance(x, int)}
  if len(places) < len(columns):
    headings = lines[0].split('\t')
    if missing := [x for x in columns.values() if x not in headings]:
      raise errors.UserError(
        f'The file {path} has the columns {headings} and not {missing}: it must'
        " be of the benchmark's own format, with its line of headings."
      )
    places = {name: headings.index(str(x)) for name, x in columns.items()}
    start = 1
  last = max(places.values())
  for number, line in enumerate(lines[start:], start + 1):
    cells = line.split('\t')
    row = None
    if len(cells) > last:
      row = {name: cells[place] for name, place in places.items()}
    yield number, row if row and row['label'] else None


def json_rows(path: str) -> Iterator[tuple]:
  """The objects of a file of JSON lines, with their line numbers from 1."""
  for number, line in enumerate(read_text(path).split('\n'), 1):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError:
        row = None
      if not isinstance(row, dict):
        raise errors.UserError(
          f'In {path}, line {number}: {line[:40]!r} is no JSON object.'
        )
      yield number, row


class ExampleSource(seqio.DataSource):
  """The examples of a recipe as a seqio data source, read when first asked.

  Attributes:
    name: of the task.
    task_name: the same, for `tasks.text_to_text` to take.
    key: a string that tells this source from every other one.
  """

  def __init__(self, name, recipe: Recipe, folder, data_dir, download):
    """Checks that the files are there.

    Args:
      name: of the task.
      recipe: of the task.
      folder: of the benchmark's files; None: TFDS.
      data_dir: TFDS's folder; None: its own default.
      download: whether TFDS may download.
    """
    self.name = self.task_name = name
    self._recipe = recipe
    self.key = repr((name, folder, data_dir))
    self._paths, self._tfds = {}, None
    if folder is None:
      self._tfds = sources.TfdsSource(recipe.tfds, data_dir, None, download)
    else:
      self._paths = _existing(os.path.expanduser(folder), name, recipe.files)
    super().__init__(splits=tuple(recipe.files))

  def __repr__(self):
    return f'{type(self).__name__}({self.key})'

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: examples are shared out, not files."""
    return True

  def list_shards(self, split: str):
    """One shard, whatever the split."""
    return [self._paths.get(split, split)]

  @functools.cache  # noqa: B019, sources live as long as their task.
  def examples(self, split: str) -> list[dict]:
    """All examples of a split, in the order of the file."""
    if split not in self.splits:
      raise errors.UserError(
        f'The split is {split!r}; {self.name} has {list(self.splits)}.'
      )
    where = self._paths.get(split, f'{self._recipe.tfds}, {split}')
    found, skipped = [], 0
    for place, row in self._rows(split):
      if row is None:
        skipped += 1
        continue
      place = f'line {place}' if isinstance(place, int) else place
      try:
        found.extend(self._recipe.convert(row, split))
      except errors.UserError as error:
        raise errors.UserError(f'In {where}, {place}: {error}') from error
      except (KeyError, TypeError, IndexError) as error:
        raise errors.UserError(
          f'In {where}, {place}: not a row of {self.name}: {error!r}; it has'
          f' {sorted(row)}.'
        ) from error
    if skipped:
      _logger.warning('%s: skipped %d rows without a label', where, skipped)
    if not found:
      raise errors.UserError(f'There is no example of {self.name} in {where}.')
    return found

  def _rows(self, split: str):
    if self._tfds is None:
      return self._recipe.read(self._paths[split])
    return _tfds_rows(self._tfds, self._recipe.tfds_splits.get(split, split))

  @functools.cache  # noqa: B019
  def _columns(self, split: str) -> dict:
    found = self.examples(split)
    return {
      name: tf.constant([example[name] for example in found])
      for name in found[0]
    }

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """Examples of a split; see seqio.DataSource."""
    del unused
    columns = self._columns(split)
    size = next(iter(columns.values())).shape[0]
    shard = shard_info or seqio.ShardInfo(0, 1)
    places = range(shard.index, size, shard.num_shards)
    order = tf.data.Dataset.range(len(places))
    if shuffle and places:
      order = _shuffled(len(places), seed)
    return order.map(
      lambda index: {
        name: tf.gather(column, places.start + index * places.step)
        for name, column in columns.items()
      }
    )


def _shuffled(size: int, seed: int | None) -> tf.data.Dataset:
  """0 .. size - 1 in a fresh order each time it is repeated.

  A permutation by a key, of which there is one a pass: the state to save is
  that key and a count, where a shuffle buffer has every element.
  """
  keys = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)

  def pass_over(key):
    return tf.data.Dataset.range(size).map(
      lambda index: tf.random.experimental.index_shuffle(
        index, tf.stack([key, key // 2**32]), size - 1
      )
    )

  return keys.take(1).flat_map(pass_over)


def _existing(folder: str, name: str, files) -> dict[str, str]:
  paths = {split: os.path.join(folder, file) for split, file in files.items()}
  try:
    missing = [x for x in paths.values() if not tf.io.gfile.exists(x)]
  except tf.errors.OpError as error:
    raise errors.UserError(
      f'The folder {folder!r} cannot be reached: {errors.reason(error)}.'
    ) from error
  if missing:
    raise errors.UserError(
      f'For {name} there is no {", no ".join(missing)}; below the folder'
      f' {folder!r} these names are looked for: {list(files.values())}.'
    )
  return paths


def _tfds_rows(source: sources.TfdsSource, split: str):
  """Rows of a TFDS split as Python values, labels as their names."""
  if split not in source.splits:
    raise errors.UserError(
      f'The split is {split!r}; {source.name} has {sorted(source.splits)}.'
    )
  features = source.features
  names = (
    getattr(features['label'], 'names', None) if 'label' in features else None
  )
  dataset = source.get_dataset(split, shuffle=False)
  flat = all(
    getattr(spec, 'shape', None) == [] for spec in dataset.element_spec.values()
  )
  if flat:
    dataset = dataset.batch(_TFDS_BATCH)
  count = 0
  for found in dataset.as_numpy_iterator():
    found = tf.nest.map_structure(_plain, found)
    for row in _unbatched(found) if flat else [found]:
      row = tf.nest.map_structure(_decoded, row)
      if names is not None:
        label = row['label']
        row['label'] = names[label] if 0 <= label < len(names) else label
      yield f'example {count}', row
      count += 1


def _unbatched(batch: dict):
  for values in zip(*batch.values(), strict=True):
    yield dict(zip(batch, values, strict=True))


def _plain(value):
  return value.tolist() if hasattr(value, 'tolist') else value


def _decoded(value):
  return value.decode('utf-8') if isinstance(value, bytes) else value
