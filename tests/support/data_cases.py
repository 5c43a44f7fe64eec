"""Corpora, prepared sets and batches, as the tests of data need them."""

import numpy as np
import pytest

from t5x_variants.data import config
from t5x_variants.data.prepared import writer
from t5x_variants.data.tasks import registry as tasks
from t5x_variants.data.text import corpora, vocabularies

LENGTHS = {'inputs': 64, 'targets': 24}


def sentence_piece(text, prefix, ids=(0, 1, 2, -1)):
  """Trains a model of 60 pieces on a file; its path.

  Args:
    text: the file.
    prefix: the path of the model without its suffix.
    ids: those of the padding, of the end, of the unknown and of the beginning;
      T5's by default.
  """
  import sentencepiece

  pad, eos, unk, bos = ids
  sentencepiece.SentencePieceTrainer.train(
    input=str(text),
    model_prefix=str(prefix),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
    pad_id=pad,
    eos_id=eos,
    unk_id=unk,
    bos_id=bos,
  )
  return f'{prefix}.model'


def prepare(folder, task, lengths=None, report=lambda examples: None):
  """Writes a set in this process; True where it was whole before."""
  work = writer.configure(task, lengths or LENGTHS, str(folder))
  missing = writer.begin(work)
  for shard in missing or []:
    writer.write_shard(work, *shard, report)
  return missing is None or writer.finish(work)


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  """62 documents of 1 to 300 bytes."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  found = [
    f'Document {i} ' + ' '.join(map(str, rng.integers(0, 999, length)))
    for i, length in enumerate(rng.integers(0, 80, 60))
  ]
  (folder / 'a.txt').write_text('\n\n'.join([*found, 'x', 'yz']))
  source = corpora.text_files(str(folder / '*.txt'), validation_fraction=0.2)
  return tasks.span_corruption(source, vocabularies.byte())


@pytest.fixture(scope='module')
def folder(task, tmp_path_factory):
  """The set that is prepared from them."""
  path = tmp_path_factory.mktemp('prepared') / 'set'
  prepare(path, task)
  return path


def dataset(folder, split='train', batch_size=8, lengths=None, **options):
  return config.DatasetConfig(
    None, lengths, split, batch_size, prepared=str(folder), **options
  )


def examples(batches):
  """(inputs, targets), EOS included, in the order of packing."""
  for batch in batches:
    sides = [
      (batch[f'{side}_tokens'], batch[f'{side.split("_")[0]}_segment_ids'])
      for side in ('encoder_input', 'decoder_target')
    ]
    for row in range(len(sides[0][0])):
      for segment in range(1, sides[0][1][row].max() + 1):
        yield tuple(t[row][ids[row] == segment] for t, ids in sides)


def text(inputs, targets):
  """The chunk of bytes: spans put back, and no EOS."""
  spans = np.split(targets[:-1], np.flatnonzero(targets[:-1] >= 259))[1:]
  spans = {span[0]: span[1:] for span in spans}
  whole = [spans.get(token, [token]) for token in inputs[:-1]]
  return (np.concatenate(whole) - 3).astype(np.uint8).tobytes()


def texts(batches):
  return [text(*example) for example in examples(batches)]


def same(one, other):
  """Fails unless two batches are equal."""
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], name)


def alike(some, others):
  """Fails unless as many batches are equal."""
  for one, other in zip(some, others, strict=True):
    same(one, other)
