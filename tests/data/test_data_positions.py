"""Positions and settings that are wrong: one sentence, never other batches."""

import json

import data_cases
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf
from data_cases import LENGTHS, dataset, same

from t5x_variants.data import config, pipeline
from t5x_variants.data.prepared import embedded as embedded_set
from t5x_variants.data.prepared import writer as preparation
from t5x_variants.data.tasks import examples
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies
from t5x_variants.errors import DamagedError, UserError
from t5x_variants.training import checkpoints

task, folder = data_cases.task, data_cases.folder


def of_prepared(folder, **options):
  return dataset(folder, **options).open()


def of_seqio(task, lengths=None):
  lengths = lengths or LENGTHS
  return pipeline.Batches(task, lengths, 'train', 4, shuffle=True, seed=0)


@pytest.fixture
def saved(folder, tmp_path):
  """Where a position of prepared data lies, after a batch."""
  batches = of_prepared(folder)
  next(batches)
  batches.save(tmp_path)
  return tmp_path / 'position.json'


def test_a_position_is_a_number_and_what_it_belongs_to(saved, folder, task):
  fields = json.loads(saved.read_text())
  assert 8 <= fields['example'] < 40
  assert set(fields) == {'example', 'built_with', 'crc32'}
  for options, words in (
    ({'seed': 1}, 'seed=0 and this run has 1'),
    ({'batch_size': 4}, 'batch_size=8 and this run has 4'),
    ({'pack': False}, 'pack=True'),
  ):
    with pytest.raises(UserError, match=words):
      of_prepared(folder, **options).restore(saved.parent)
  finished = of_prepared(folder, num_epochs=1)
  assert list(finished)
  finished.save(saved.parent / 'end')
  again = of_prepared(folder, num_epochs=1)
  again.restore(saved.parent / 'end')
  assert not list(again)
  # That of the other way to read is refused.
  theirs = of_seqio(task)
  with pytest.raises(UserError, match='is that of prepared data'):
    theirs.restore(saved.parent)
  theirs.save(saved.parent / 'theirs')
  with pytest.raises(UserError, match='is that of a seqio task'):
    again.restore(saved.parent / 'theirs')


def test_a_position_without_a_checksum_is_read_as_before(saved, folder):
  again = of_prepared(folder)
  again.restore(saved.parent)
  fields = json.loads(saved.read_text())
  del fields['crc32']
  saved.write_text(json.dumps(fields))
  older = of_prepared(folder)
  older.restore(saved.parent)
  same(next(older), next(again))


@pytest.mark.parametrize('checksum', [True, False])
def test_an_example_that_is_none_is_one_sentence(saved, folder, checksum):
  fields = json.loads(saved.read_text())
  if not checksum:
    del fields['crc32']
  for wrong in (-5, 3.0, '3', 10**30, None, True, [3], 'missing'):
    fields['example'] = wrong
    if wrong == 'missing':
      del fields['example']
    saved.write_text(json.dumps(fields))
    with pytest.raises(DamagedError, match='position cannot be read') as error:
      of_prepared(folder).restore(saved.parent)
    assert '\n' not in str(error.value)


def test_an_example_behind_the_last_is_refused(folder, tmp_path):
  batches = of_prepared(folder, num_epochs=1)
  list(batches)
  batches.save(tmp_path)
  fields = json.loads((tmp_path / 'position.json').read_text())
  del fields['crc32']
  last = fields['example']
  fields['example'] = last + 1
  (tmp_path / 'position.json').write_text(json.dumps(fields))
  with pytest.raises(DamagedError, match=f'from 0 to {last}'):
    of_prepared(folder, num_epochs=1).restore(tmp_path)


def test_a_spoilt_position_is_one_sentence_and_never_another(saved, folder):
  data = saved.read_bytes()
  spoilt = [b'', b'{', b'[]', b'5', b'{"example": 8}', b'\xff\xfe']
  for bit in np.random.default_rng(0).integers(0, 8 * len(data), 60):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    spoilt.append(damaged)
  for content in spoilt:
    saved.write_bytes(content)
    with pytest.raises(DamagedError, match='position cannot be read'):
      of_prepared(folder).restore(saved.parent)
  saved.unlink()
  with pytest.raises(DamagedError, match='position cannot be read'):
    of_prepared(folder).restore(saved.parent)


@flax.struct.dataclass
class State:
  """The least that `checkpoints` can save."""

  params: dict
  opt_state: dict


def test_a_damaged_position_is_set_aside_with_its_checkpoint(
  folder, tmp_path, caplog
):
  batches, expected = of_prepared(folder), None
  kept = checkpoints.Checkpoints(
    tmp_path / 'checkpoints', checkpoints.CheckpointConfig()
  )
  for step in (1, 2):
    next(batches)
    state = State({'w': jnp.full(3, float(step))}, {'m': jnp.zeros(3)})
    kept.save(step, state, batches)
    kept.wait()
    if step == 1:
      one = of_prepared(folder)
      next(one)
      expected = next(one)
  (tmp_path / 'checkpoints/2/data/position.json').write_text('{"example": -5}')
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  again = of_prepared(folder)
  restored = kept.restore_latest(shapes, again)
  assert float(restored.params['w'][0]) == 1
  same(next(again), expected)
  assert (tmp_path / 'checkpoints/unreadable-2').is_dir()
  (said,) = [r.getMessage() for r in caplog.records if 'step 2' in r.message]
  assert 'data/position.json differs' in said and '\n' not in said
  # Of another run, and whole: nothing is set aside.
  with pytest.raises(UserError, match='saved with seed=0'):
    kept.restore_latest(shapes, of_prepared(folder, seed=1))
  assert (tmp_path / 'checkpoints/1').is_dir()
  kept.close()


def test_a_damaged_position_of_a_seqio_task(task, tmp_path):
  batches = of_seqio(task)
  next(batches)
  batches.save(tmp_path)
  expected = next(batches)
  files = sorted(tmp_path.iterdir())
  assert [file.suffix for file in files] == [
    '.data-00000-of-00001',
    '.index',
    '.json',
  ]
  # One reader for all: to build one costs more than to put it somewhere.
  again = of_seqio(task)
  rng = np.random.default_rng(0)
  for file in files:
    data = file.read_bytes()
    spoilt = [data[: len(data) // 2], b'']
    bits = rng.integers(0, 8 * len(data), 12)
    if file.suffix == '.json':
      spoilt += [b'[]', b'5', b'\xff']
    elif file.suffix != '.index':
      # In a name and in a checksum: TensorFlow aborts at many a wrong length,
      # and so checkpoints compare checksums before it reads.
      bits = 8 * np.array([data.index(b'::Iterator') + 4, len(data) - 1])
    for bit in bits:
      damaged = bytearray(data)
      damaged[bit // 8] ^= 1 << bit % 8
      spoilt.append(damaged)
    for content in spoilt:
      file.write_bytes(content)
      try:
        again.restore(tmp_path)
      except UserError as error:
        assert '\n' not in str(error)
      else:
        same(next(again), expected)
    file.unlink()
    with pytest.raises(UserError, match=r'cannot be read|There is no data pos'):
      again.restore(tmp_path)
    file.write_bytes(data)
  # What failed before does not keep a whole one from being read.
  again.restore(tmp_path)
  same(next(again), expected)


def test_a_position_in_files_that_have_changed_is_refused(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('\n\n'.join(f'Document number {i}.' for i in range(40)))
  source = corpora.text_files(str(path), validation_fraction=0.2)
  name = tasks.span_corruption(source, vocabularies.byte())
  batches = of_seqio(name)
  next(batches)
  batches.save(tmp_path / 'position')
  expected = next(batches)
  (saved,) = (tmp_path / 'position').glob('*.json')
  fields = json.loads(saved.read_text())
  assert fields.pop('bytes of files') == path.stat().st_size
  # As earlier versions saved it.
  saved.write_text(json.dumps(fields))
  again = of_seqio(name)
  again.restore(tmp_path / 'position')
  same(next(again), expected)
  batches.save(tmp_path / 'position')
  path.write_text(path.read_text() + '\n\nOne more.')
  with pytest.raises(UserError, match=r'bytes of files=.* this run has'):
    of_seqio(name).restore(tmp_path / 'position')


@pytest.mark.parametrize(
  'lengths, words',
  [
    (None, 'is None; it must give'),
    (64, 'is 64; it must give'),
    ({}, 'is {}; it must give'),
    ({'inputs': 64}, "must give the tokens of 'inputs' and of 'targets'"),
    (LENGTHS | {'input': 8}, "no feature 'input'.*'inputs', 'targets'"),
    (LENGTHS | {'inputs': -64}, "of 'inputs' is -64; .* whole number from 1"),
    (LENGTHS | {'targets': 0}, "of 'targets' is 0; it must be a whole"),
    (LENGTHS | {'targets': 24.0}, "of 'targets' is 24.0; it must be a whole"),
    (LENGTHS | {'targets': '24'}, "of 'targets' is '24'; it must be a whole"),
  ],
)
def test_wrong_lengths_are_refused_wherever_they_are_read(
  task, folder, tmp_path, lengths, words
):
  of_task = config.DatasetConfig(task, lengths, 'train', 8)
  calls = [
    of_task.open,
    of_task.examples,
    lambda: preparation.configure(task, lengths, str(tmp_path)),
  ]
  if lengths is not None:  # Those of the set.
    calls.append(dataset(folder, lengths=lengths).open)
    calls.append(lambda: embedded_set.prepared(lengths))
  for call in calls:
    with pytest.raises(UserError, match=words):
      call()


@pytest.mark.parametrize(
  'option, words',
  [
    ({'pack': 'False'}, "pack is 'False'; .* without quotes"),
    ({'shuffle': 1}, 'shuffle is 1; it must be True or False'),
    ({'seed': '0'}, "seed is '0'; it must be a whole number"),
    ({'seed': 0.5}, 'seed is 0.5'),
    ({'num_epochs': -1}, 'num_epochs is -1; .* from 1 up'),
    ({'num_epochs': 0}, 'num_epochs is 0'),
    ({'batch_size': 8.0}, 'BATCH_SIZE is 8.0; .* from 1 up'),
    ({'batch_size': '8'}, "BATCH_SIZE is '8'"),
  ],
)
def test_a_setting_of_the_wrong_kind_is_refused(option, words):
  with pytest.raises(UserError, match=words):
    config.DatasetConfig('x', LENGTHS, 'train', **({'batch_size': 8} | option))


@pytest.mark.parametrize('read', ['open', 'examples'])
def test_no_task_and_no_prepared_data_is_refused(read):
  dataset = config.DatasetConfig(None, LENGTHS, 'train', 8)
  with pytest.raises(UserError, match='MIXTURE_OR_TASK_NAME is None'):
    getattr(dataset, read)()


def register(
  name, splits, vocabulary=None, features=('inputs', 'targets'), texts='ab'
):
  """A seqio task of a few pairs, its inputs in a vocabulary of their own."""

  def rows(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(
      {feature: list(texts) for feature in features}
    )

  if name not in seqio.TaskRegistry.names():
    plain = vocabularies.byte()
    found = {'inputs': vocabulary or plain, 'targets': plain}
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(rows, splits=splits),
      output_features={x: seqio.Feature(found[x]) for x in features},
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim,
      ],
    )
  return name


def mixture(name, tasks):
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, tasks, default_rate=1)
  return name


def test_a_task_of_a_mixture_without_the_split_is_said_once(caplog):
  both = register('positions_both', ['train', 'validation'])
  name = mixture(
    'positions_mixture', [both, register('positions_train', ['train'])]
  )
  tasks._say_left_out.cache_clear()
  options = {'shuffle': False, 'seed': 0, 'num_epochs': 1}
  for split in ('train', 'validation'):
    pipeline.Batches(name, LENGTHS, split, 4, **options)
    found = examples.open_split(name, LENGTHS, split)
    assert len(found) == (2 if split == 'train' else 1)
  (said,) = [r.getMessage() for r in caplog.records if 'left out' in r.message]
  assert "have no split 'validation'" in said and 'positions_train' in said


def test_a_pass_over_a_mixture_of_seqio_s_reaches_its_last_example():
  """With the sampling of seqio itself it ends with the smallest task."""
  long = [f'text {i}' for i in range(30)]
  names = [
    register('positions_short', ['validation'], texts='abc'),
    register('positions_long', ['validation'], texts=long),
  ]
  options = {'shuffle': False, 'seed': 0, 'num_epochs': 1, 'pack': False}
  batches = pipeline.Batches(
    mixture('positions_uneven', names), LENGTHS, 'validation', 4, **options
  )
  found = [
    vocabularies.byte().decode(row[row > 1].tolist())
    for batch in batches
    for row in batch['encoder_input_tokens']
    if row.any()
  ]
  assert sorted(found) == sorted([*'abc', *long])


def test_a_task_that_the_model_cannot_read_is_refused():
  """Of two vocabularies the larger must fit; both features must be there."""
  batches = of_seqio(
    register('positions_two', ['train'], vocabularies.byte(400))
  )
  assert batches.vocab_size == 256 + 3 + 400
  with pytest.raises(UserError, match='has 659 ids'):
    config.check_vocabulary(batches, 384)
  name = register('positions_language', ['train'], features=('targets',))
  with pytest.raises(UserError, match=r"no feature 'inputs', but .'targets'"):
    of_seqio(name)
