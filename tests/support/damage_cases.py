"""Ways to damage a folder of weights, and what is then said.

Each is a function of the folder and of another model's.
"""

import functools
import json
import os
import shutil
import struct

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

SCALE = 'target.decoder.decoder_norm.scale'
DEEP = '[' * 100_000 + ']' * 100_000


def text(name, content):
  """Writes a file, text or bytes, over the one that is there."""
  content = content if isinstance(content, bytes) else content.encode()
  return lambda folder, other: (folder / name).write_bytes(content)


def edited(name, **changes):
  """Changes settings of a JSON file."""

  def act(folder, other):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))

  return act


config = functools.partial(edited, 'config.json')
zarray = functools.partial(edited, f'{SCALE}/.zarray')


def removed(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def linked(name):
  """Replaces a file by a link to the other model's."""

  def act(folder, other):
    removed(folder / name)
    (folder / name).symlink_to(other / name)

  return act


def piped(name):
  def act(folder, other):
    removed(folder / name)
    os.mkfifo(folder / name)

  return act


def truncated(name):
  """Leaves ten bytes of every file in a folder."""

  def act(folder, other):
    for path in (folder / name).iterdir():
      os.truncate(path, 10)

  return act


def foldered(name):
  def act(folder, other):
    removed(folder / name)
    (folder / name).mkdir()

  return act


def header(change):
  """Changes the JSON in front of a safetensors file."""

  def act(folder, other):
    file = folder / 'model.safetensors'
    content = file.read_bytes()
    (size,) = struct.unpack('<Q', content[:8])
    described = json.loads(content[8 : 8 + size])
    change(described, next(iter(k for k in described if k[0] != '_')))
    written = json.dumps(described).encode()
    file.write_bytes(
      struct.pack('<Q', len(written)) + written + content[8 + size :]
    )

  return act


def tensors(**values):
  def act(folder, other):
    file = folder / 'model.safetensors'
    content = safetensors.numpy.load_file(file) | values
    safetensors.numpy.save_file(content, file)

  return act


def index(content):
  """The weights in a second file, and an index; OTHER is the other folder."""

  def act(folder, other):
    os.rename(folder / 'model.safetensors', folder / 'part.safetensors')
    written = content if isinstance(content, str) else json.dumps(content)
    written = written.replace('OTHER', str(other))
    (folder / 'model.safetensors.index.json').write_text(written)

  return act


def mapped(name):
  return index({'weight_map': {'shared.weight': name}})


def twice(folder, other):
  index({'weight_map': {'a': 'part.safetensors', 'b': 'b.safetensors'}})(
    folder, other
  )
  shutil.copy(folder / 'part.safetensors', folder / 'b.safetensors')


def pickled(make):
  """Replaces the weights by what torch writes, or by bytes."""

  def act(folder, other):
    removed(folder / 'model.safetensors')
    make(folder / 'pytorch_model.bin')

  return act


def pickled_by_torch(content):
  def make(file):
    import torch

    torch.save(content(torch), file)

  return pickled(make)


def packed(change):
  """Changes the content of t5x's msgpack file."""

  def act(folder, other):
    content = serialization.msgpack_restore(
      (folder / 'checkpoint').read_bytes()
    )
    change(content['optimizer'])
    (folder / 'checkpoint').write_bytes(
      serialization.msgpack_serialize(content)
    )

  return act


def target(value):
  return packed(lambda content: content.update(target=value))


def step(value):
  return packed(lambda content: content['state'].update(step=value))


def leaf(value):
  return packed(
    lambda content: content['target']['decoder']['decoder_norm'].update(
      scale=value
    )
  )


def spec(**changes):
  return packed(
    lambda content: content['target']['decoder']['decoder_norm'][
      'scale'
    ].update(changes)
  )


def stored(path):
  return spec(kvstore={'driver': 'file', 'path': path})


def shape(*sizes):
  return spec(metadata={'shape': list(sizes)})


def raw(optimizer):
  content = {'version': 3, 'optimizer': optimizer}
  return text('checkpoint', msgpack.packb(content))


def empty(**described):
  """A tensor more in the header, of no bytes."""
  (name,) = described
  return header(
    lambda content, _: content.update(
      {
        name.replace('NEWLINE', '\n'): {
          'dtype': 'F32',
          'shape': described[name],
          'data_offsets': [0, 0],
        }
      }
    )
  )


HF = {
  'config is nested': (text('config.json', DEEP), 'not valid JSON'),
  'config is a list': (text('config.json', '[1]'), 'not a JSON object'),
  'config has bad bytes': (text('config.json', b'{"\xff"}'), 'not valid JSON'),
  'config has a huge number': (
    text('config.json', '{"d_model": 1' + '0' * 5000 + '}'),
    'not valid JSON',
  ),
  'config is a folder': (foldered('config.json'), 'not a plain file'),
  'config is a pipe': (piped('config.json'), 'not a plain file'),
  'config is a link': (linked('config.json'), 'leads out of the folder'),
  'block is a list': (
    config(feed_forward_proj=['gated-gelu']),
    "feed_forward_proj in config.json is .'gated-gelu'.; it must be a str",
  ),
  'block is an object': (config(feed_forward_proj={}), 'must be a str'),
  'tied is a text': (config(tie_word_embeddings='no'), 'must be a bool'),
  'activation is a text': (config(activation='relu'), 'must be a dict'),
  'bart': (config(model_type='bart'), "of the type 'bart'; the types that can"),
  'no type': (config(model_type=None), 'of the type None'),
  'umt5': (config(model_type='umt5'), 'position bias in every layer'),
  'weights are a link': (linked('model.safetensors'), 'leads out of the'),
  'weights are a pipe': (piped('model.safetensors'), 'not a plain file'),
  'weights are a folder': (foldered('model.safetensors'), 'not a plain file'),
  'offsets': (
    header(lambda c, first: c[first].update(data_offsets=[0, 10**12])),
    'truncated or is not a safetensors file',
  ),
  'negative shape': (
    header(lambda c, first: c[first].update(shape=[-1, 8])),
    'truncated or is not a safetensors file',
  ),
  'unknown dtype': (
    header(lambda c, first: c[first].update(dtype='Q7')),
    'truncated or is not a safetensors file',
  ),
  'integers': (
    header(lambda c, first: c[first].update(dtype='I32')),
    'of dtype I32; those that can be read',
  ),
  'a name of two lines': (empty(aNEWLINEb=[0]), r"name 'a\\nb'"),
  'a long name': (empty(**{'a' * 100_000: [0]}), "name 'aaa.*aaa'"),
  'layers': (empty(**{'encoder/layers/x': [10**12, 0]}), '1000000000000, 0'),
  'a name of ours': (
    empty(**{'encoder/encoder_norm/scale': [0]}),
    'no name that transformers gives',
  ),
  'not finite': (
    tensors(**{'encoder.final_layer_norm.weight': np.float32([np.nan] * 8)}),
    'encoder/encoder_norm/scale of .* not finite',
  ),
  'another table': (
    tensors(**{'encoder.embed_tokens.weight': np.ones((40, 8), np.float32)}),
    'encoder.embed_tokens.weight of .* differs from shared.weight',
  ),
  'index is no JSON': (index('x'), 'not valid JSON'),
  'index is nested': (index(DEEP), 'not valid JSON'),
  'index is a list': (index([]), 'not a JSON object'),
  'index without map': (index({}), 'no weight_map'),
  'map is a list': (index({'weight_map': ['a']}), 'no weight_map'),
  'map of numbers': (mapped(1), 'no weight_map'),
  'map of nothing': (mapped(None), 'no weight_map'),
  'map out of the folder': (
    mapped('../other/model.safetensors'),
    'leads out of the folder',
  ),
  'map to an absolute path': (
    mapped('OTHER/model.safetensors'),
    'leads out of the folder',
  ),
  'map to a folder': (mapped('.'), 'not a plain file'),
  'map to nothing': (mapped('x.safetensors'), "no file 'x.safetensors'"),
  'map to no name': (
    index('{"weight_map": {"a": "\\ud800"}}'),
    'cannot be read: .* surrogates',
  ),
  'map to a zero byte': (mapped('a\0b'), 'cannot be read: embedded null'),
  'map to a long name': (mapped('x' * 5000), 'cannot be read: File name too'),
  'a tensor in two files': (twice, 'in more than one file'),
  'a pickle is a pipe': (pickled(os.mkfifo), 'not a plain file'),
}
TORCH = {
  'bytes': (pickled(lambda file: file.write_bytes(b'x')), 'UnpicklingError'),
  'a list': (pickled_by_torch(lambda torch: [1]), 'AttributeError'),
  'a number': (
    pickled_by_torch(lambda torch: {'shared.weight': 1}),
    'AttributeError',
  ),
  'no name': (
    pickled_by_torch(lambda torch: {1: torch.ones(3)}),
    'name 1 and the shape',
  ),
  'integers': (
    pickled_by_torch(lambda torch: {'x': torch.ones(3, dtype=torch.int32)}),
    'something else than floating-point tensors',
  ),
}
T5X = {
  'nested': (text('checkpoint', b'\x81\xa1a' * 100_000), 'not a msgpack file'),
  'an array of no type': (
    raw(msgpack.ExtType(1, msgpack.packb(((2,), 'nope', b'12345678')))),
    'not a msgpack file',
  ),
  'half a complex number': (
    raw(msgpack.ExtType(2, msgpack.packb(()))),
    'not a msgpack file',
  ),
  'chunks of nothing': (
    raw({'__msgpack_chunked_array__': True}),
    'not a msgpack file',
  ),
  'state is a list': (raw({'target': {}, 'state': [1]}), 'no parameters'),
  'step is a text': (step('x'), "step 'x'; a step is a whole number"),
  'step is a list': (step([1]), r'step \[1\]'),
  'step is huge': (step(2**40), 'step 1099511627776'),
  'step is negative': (step(-5), 'step -5'),
  'parameters are a list': (target([1]), 'holds no parameters'),
  'parameters are a text': (target('x'), 'holds no parameters'),
  'parameters are nothing': (target(None), 'holds no parameters'),
  'a number as name': (
    text(
      'checkpoint',
      b'\x82\xa7version\x03\xa9optimizer\x82\xa5state\x80\xa6target\x81\x01\x02',
    ),
    r'\(1,\) is no name',
  ),
  'a path as name': (target({'../x': np.zeros(2)}), 'is no name'),
  'a leaf is a text': (leaf('x'), 'neither values nor a shape'),
  'a leaf is a list': (leaf([1.0] * 8), 'neither values nor a shape'),
  'a leaf of integers': (leaf(np.ones(8, np.int32)), 'of dtype int32'),
  'a leaf of complex numbers': (leaf(np.ones(8, 'c8')), 'of dtype complex64'),
  'no metadata': (spec(metadata=None), 'neither values nor a shape'),
  'metadata is a text': (spec(metadata='x'), 'neither values nor a shape'),
  'shape of texts': (shape('8'), r"shape \('8',\)"),
  'shape of fractions': (shape(8.0), r'shape \(8.0,\)'),
  'negative shape': (shape(-8), r'shape \(-8,\)'),
  'shape of lists': (shape([8]), r'shape \(\[8\],\)'),
  'huge shape': (shape(10**15), r'shape \(1000000000000000,\)'),
  'layers': (
    packed(
      lambda content: content['target']['encoder'].update(
        layers={'x': np.zeros((2000, 0))}
      )
    ),
    r'shape \(2000, 0\)',
  ),
  'layers twice': (
    packed(
      lambda content: content['target']['encoder'].update(
        layers=content['target']['encoder']['layers_0']
        | {'mlp': {'wi_0': {'kernel': np.ones((1, 8, 12), np.float32)}}}
      )
    ),
    'both layer by layer',
  ),
  'store is a list': (spec(kvstore=[1]), 'no folder inside the checkpoint'),
  'store is a text': (spec(kvstore='file:///x'), 'no folder inside'),
  'store at a number': (stored(3), 'no folder inside'),
  'store at nothing': (stored(''), 'no folder inside'),
  'store outside': (stored(f'../../other/{SCALE}'), 'no folder inside'),
  'store around': (stored(f'../checkpoint_7/{SCALE}'), 'no folder inside'),
  'store at the root': (stored(f'/{SCALE}'), 'no folder inside'),
  'store at a zero byte': (stored('a\0b'), 'no folder inside'),
  'zarr is nested': (text(f'{SCALE}/.zarray', DEEP), 'not valid JSON'),
  'zarr has bad bytes': (text(f'{SCALE}/.zarray', b'\xff'), 'not valid JSON'),
  'zarr of integers': (zarray(dtype='<i4'), 'of dtype int32'),
  'zarr of two fields': (
    zarray(dtype=[['a', '<f4'], ['b', '<f4']]),
    'scale of .* cannot be read',
  ),
  'zarr of another shape': (zarray(shape=[9]), r'shape \[9\]'),
  'huge chunks': (zarray(chunks=[10**12]), r'hold \[1000000000000\] values'),
  'no chunks': (zarray(chunks=[0]), 'scale of .* cannot be read'),
  'unknown compressor': (
    zarray(compressor={'id': 'x'}),
    'scale of .* cannot be read',
  ),
  'a chunk is another file': (
    lambda folder, other: os.rename(
      folder / SCALE / '0', folder / SCALE / 'junk'
    ),
    '1 of its 2 files are missing',
  ),
  'a chunk is empty': (text(f'{SCALE}/0', ''), 'scale of .* cannot be read'),
  'a chunk is a pipe': (piped(f'{SCALE}/0'), 'not a plain file'),
  'a chunk is a folder': (foldered(f'{SCALE}/0'), 'files are missing'),
  'a chunk is a link': (linked(f'{SCALE}/0'), 'leads out of the folder'),
  'a tensor is a link': (linked(SCALE), 'leads out of the folder'),
  'the file is a link': (linked('checkpoint'), 'leads out of the folder'),
  'the file is a pipe': (piped('checkpoint'), 'holds no checkpoint of t5x'),
}
ORBAX = {
  'nested': (text('state/_METADATA', DEEP), 'not valid JSON'),
  'bad bytes': (text('state/_METADATA', b'\xff'), 'not valid JSON'),
  'a list': (text('state/_METADATA', '[1]'), 'not a JSON object'),
  'tree is a text': (edited('state/_METADATA', tree_metadata='x'), 'be read'),
  'a pipe': (piped('state/_METADATA'), 'not a plain file'),
  'a link': (linked('state/_METADATA'), 'leads out of the folder'),
  'manifest is a pipe': (piped('state/manifest.ocdbt'), 'not a plain file'),
  'manifest is empty': (text('state/manifest.ocdbt', ''), 'cannot be read'),
  'entries are truncated': (
    truncated('state/d'),
    'cannot be read: OUT_OF_RANGE',
  ),
  'values are truncated': (
    truncated('state/ocdbt.process_0/d'),
    'cannot be read: OUT_OF_RANGE',
  ),
  'values are a link': (linked('state/d'), 'leads out of the folder'),
}
CASES = [
  pytest.param(
    'hf' if kind == 'torch' else kind,
    damage,
    said,
    id=f'{kind}-{name}',
    marks=[pytest.mark.hf] if kind == 'torch' else [],
  )
  for kind, cases in (
    ('hf', HF),
    ('torch', TORCH),
    ('t5x', T5X),
    ('orbax', ORBAX),
  )
  for name, (damage, said) in cases.items()
]
