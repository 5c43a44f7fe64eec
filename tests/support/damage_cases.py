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

EMBEDDING = 'target.token_embedder.embedding'
SCALE = 'target.decoder.decoder_norm.scale'
NORM = 'encoder.final_layer_norm.weight'
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
  """Leaves ten bytes of a file, or of every file in a folder."""

  def act(folder, other):
    path = folder / name
    for file in path.iterdir() if path.is_dir() else [path]:
      os.truncate(file, 10)

  return act


def absent(name):
  return lambda folder, other: removed(folder / name)


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


def tensors(*left_out, **values):
  """Leaves tensors out of a safetensors file, and puts others in."""

  def act(folder, other):
    file = folder / 'model.safetensors'
    content = safetensors.numpy.load_file(file) | values
    content = {k: v for k, v in content.items() if k not in left_out}
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


def raw(optimizer, version=3):
  content = {'version': version, 'optimizer': optimizer}
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


def another(file, name):
  """Replaces the file, or the folder, of one tensor by that of another."""

  def act(folder, other):
    removed(folder / file)
    shutil.copytree(folder / name, folder / file)

  return act


# By what is said: the damage by its name.
HF = {
  'not valid JSON': {
    'config is nested': text('config.json', DEEP),
    'config has bad bytes': text('config.json', b'{"\xff"}'),
    'config has a huge number': text(
      'config.json', '{"d_model": 1' + '0' * 5000 + '}'
    ),
    'config is truncated': truncated('config.json'),
    'index is no JSON': index('x'),
    'index is nested': index(DEEP),
  },
  'not a JSON object': {
    'config is a list': text('config.json', '[1]'),
    'index is a list': index([]),
  },
  'not a plain file': {
    'config is a folder': foldered('config.json'),
    'config is a pipe': piped('config.json'),
    'weights are a pipe': piped('model.safetensors'),
    'weights are a folder': foldered('model.safetensors'),
    'map to a folder': mapped('.'),
    'a pickle is a pipe': pickled(os.mkfifo),
  },
  'leads out of the folder': {
    'config is a link': linked('config.json'),
    'weights are a link': linked('model.safetensors'),
    'map out of the folder': mapped('../other/model.safetensors'),
    'map to an absolute path': mapped('OTHER/model.safetensors'),
  },
  "feed_forward_proj in config.json is .'gated-gelu'.; it must be a str": {
    'block is a list': config(feed_forward_proj=['gated-gelu'])
  },
  'must be a str': {'block is an object': config(feed_forward_proj={})},
  'must be a bool': {'tied is a text': config(tie_word_embeddings='no')},
  'must be a dict': {'activation is a text': config(activation='relu')},
  "of the type 'bart'; the types that can": {'bart': config(model_type='bart')},
  'of the type None': {'no type': config(model_type=None)},
  'position bias in every layer': {'umt5': config(model_type='umt5')},
  "'gated-silu' there, 'gated-gelu' in this model": {
    'another block': config(feed_forward_proj='gated-silu')
  },
  'num_heads: 3 there, 2 in this model': {
    'other heads': config(num_heads=3, d_kv=2)
  },
  'tie_word_embeddings': {'tied': config(tie_word_embeddings=True)},
  'relative_attention_max_distance: 256 there, 128': {
    'another distance': config(relative_attention_max_distance=256)
  },
  'holds no checkpoint of Hugging Face': {'no config': absent('config.json')},
  'holds no weights': {'no weights': absent('model.safetensors')},
  'truncated or is not a safetensors file': {
    'truncated': lambda folder, other: os.truncate(
      folder / 'model.safetensors', 2000
    ),
    'offsets': header(
      lambda c, first: c[first].update(data_offsets=[0, 10**12])
    ),
    'negative shape': header(lambda c, first: c[first].update(shape=[-1, 8])),
    'unknown dtype': header(lambda c, first: c[first].update(dtype='Q7')),
  },
  'of dtype I32; those that can be read': {
    'integers': header(lambda c, first: c[first].update(dtype='I32'))
  },
  r"name 'a\\nb'": {'a name of two lines': empty(aNEWLINEb=[0])},
  "name 'aaa.*aaa'": {'a long name': empty(**{'a' * 100_000: [0]})},
  '1000000000000, 0': {'layers': empty(**{'encoder/layers/x': [10**12, 0]})},
  'no name that transformers gives': {
    'a name of ours': empty(**{'encoder/encoder_norm/scale': [0]})
  },
  'encoder/encoder_norm/scale of .* not finite': {
    'not finite': tensors(**{NORM: np.float32([np.nan] * 8)})
  },
  'encoder.embed_tokens.weight of .* differs from shared.weight': {
    'another table': tensors(
      **{'encoder.embed_tokens.weight': np.ones((40, 8), np.float32)}
    )
  },
  'decoder/logits_dense/kernel: absent in the checkpoint': {
    'no head': tensors('lm_head.weight')
  },
  r'extra: \[3\] in the checkpoint, absent in this model': {
    'one more': tensors(extra=np.zeros(3))
  },
  r'encoder/encoder_norm/scale: \[9\] in the checkpoint, \[8\]': {
    'a longer one': tensors(**{NORM: np.zeros(9, np.float32)})
  },
  'no weight_map': {
    'index without map': index({}),
    'map is a list': index({'weight_map': ['a']}),
    'map of numbers': mapped(1),
    'map of nothing': mapped(None),
  },
  "no file 'x.safetensors'": {'map to nothing': mapped('x.safetensors')},
  'cannot be read: .* surrogates': {
    'map to no name': index('{"weight_map": {"a": "\\ud800"}}')
  },
  'cannot be read: embedded null': {'map to a zero byte': mapped('a\0b')},
  'cannot be read: File name too': {'map to a long name': mapped('x' * 5000)},
  'in more than one file': {'a tensor in two files': twice},
}
TORCH = {
  'UnpicklingError': {'bytes': pickled(lambda file: file.write_bytes(b'x'))},
  'AttributeError': {
    'a list': pickled_by_torch(lambda torch: [1]),
    'a number': pickled_by_torch(lambda torch: {'shared.weight': 1}),
  },
  'name 1 and the shape': {
    'no name': pickled_by_torch(lambda torch: {1: torch.ones(3)})
  },
  'something else than floating-point tensors': {
    'integers': pickled_by_torch(
      lambda torch: {'x': torch.ones(3, dtype=torch.int32)}
    )
  },
}
T5X = {
  'not a msgpack file': {
    'nested': text('checkpoint', b'\x81\xa1a' * 100_000),
    'an array of no type': raw(
      msgpack.ExtType(1, msgpack.packb(((2,), 'nope', b'12345678')))
    ),
    'half a complex number': raw(msgpack.ExtType(2, msgpack.packb(()))),
    'chunks of nothing': raw({'__msgpack_chunked_array__': True}),
  },
  'checkpoint is truncated or is not a msgpack': {
    'truncated': truncated('checkpoint')
  },
  'of version 1 of t5x checkpoints; those that can be read are 2 and 3': {
    'an old version': raw({}, version=1)
  },
  'no parameters': {'state is a list': raw({'target': {}, 'state': [1]})},
  "step 'x'; a step is a whole number": {'step is a text': step('x')},
  r'step \[1\]': {'step is a list': step([1])},
  'step 1099511627776': {'step is huge': step(2**40)},
  'step -5': {'step is negative': step(-5)},
  'holds no parameters': {
    'no optimizer': raw({}),
    'parameters are a list': target([1]),
    'parameters are a text': target('x'),
    'parameters are nothing': target(None),
  },
  r'\(1,\) is no name': {
    'a number as name': raw({'state': {}, 'target': {1: 2}})
  },
  'is no name': {'a path as name': target({'../x': np.zeros(2)})},
  'neither values nor a shape': {
    'a leaf is a text': leaf('x'),
    'a leaf is a list': leaf([1.0] * 8),
    'no metadata': spec(metadata=None),
    'metadata is a text': spec(metadata='x'),
  },
  'of dtype int32': {
    'a leaf of integers': leaf(np.ones(8, np.int32)),
    'zarr of integers': zarray(dtype='<i4'),
  },
  'of dtype complex64': {'a leaf of complex numbers': leaf(np.ones(8, 'c8'))},
  r"shape \('8',\)": {'shape of texts': shape('8')},
  r'shape \(8.0,\)': {'shape of fractions': shape(8.0)},
  r'shape \(-8,\)': {'negative shape': shape(-8)},
  r'shape \(\[8\],\)': {'shape of lists': shape([8])},
  r'shape \(1000000000000000,\)': {'huge shape': shape(10**15)},
  r'shape \(2000, 0\)': {
    'layers': packed(
      lambda content: content['target']['encoder'].update(
        layers={'x': np.zeros((2000, 0))}
      )
    )
  },
  'both layer by layer': {
    'layers twice': packed(
      lambda content: content['target']['encoder'].update(
        layers=content['target']['encoder']['layers_0']
        | {'mlp': {'wi_0': {'kernel': np.ones((1, 8, 12), np.float32)}}}
      )
    )
  },
  'no folder inside the checkpoint': {'store is a list': spec(kvstore=[1])},
  'no folder inside': {
    'store is a text': spec(kvstore='file:///x'),
    'store at a number': stored(3),
    'store at nothing': stored(''),
    'store outside': stored(f'../../other/{SCALE}'),
    'store around': stored(f'../checkpoint_7/{SCALE}'),
    'store at the root': stored(f'/{SCALE}'),
    'store at a zero byte': stored('a\0b'),
  },
  'not valid JSON': {
    'zarr is nested': text(f'{SCALE}/.zarray', DEEP),
    'zarr has bad bytes': text(f'{SCALE}/.zarray', b'\xff'),
  },
  r'shape \[9\]': {'zarr of another shape': zarray(shape=[9])},
  r'encoder/encoder_norm/scale .* shape \[2, 32\]': {
    'another tensor': another(
      SCALE.replace('decoder', 'encoder'),
      'target.encoder.relpos_bias.rel_embedding',
    )
  },
  r'hold \[1000000000000\] values': {'huge chunks': zarray(chunks=[10**12])},
  'scale of .* cannot be read': {
    'zarr of two fields': zarray(dtype=[['a', '<f4'], ['b', '<f4']]),
    'no chunks': zarray(chunks=[0]),
    'unknown compressor': zarray(compressor={'id': 'x'}),
    'a chunk is empty': text(f'{SCALE}/0', ''),
  },
  'token_embedder/embedding of .* cannot be read': {
    'a chunk is truncated': truncated(f'{EMBEDDING}/1.0'),
    'zarr is truncated': truncated(f'{EMBEDDING}/.zarray'),
  },
  'encoder/layers_0/mlp/wi_0/kernel of .* cannot be read': {
    'a tensor is missing': absent('target.encoder.layers_0.mlp.wi_0.kernel')
  },
  # tensorstore would read zeros.
  '1 of its 4 files are missing': {'no chunk': absent(f'{EMBEDDING}/0.1')},
  '1 of its 2 files are missing': {
    'a chunk is another file': lambda folder, other: os.rename(
      folder / SCALE / '0', folder / SCALE / 'junk'
    )
  },
  'not a plain file': {'a chunk is a pipe': piped(f'{SCALE}/0')},
  'files are missing': {'a chunk is a folder': foldered(f'{SCALE}/0')},
  'leads out of the folder': {
    'a chunk is a link': linked(f'{SCALE}/0'),
    'a tensor is a link': linked(SCALE),
    'the file is a link': linked('checkpoint'),
  },
  'holds no checkpoint of t5x': {
    'the file is a pipe': piped('checkpoint'),
    'no file': absent('checkpoint'),
  },
}
ORBAX = {
  'not valid JSON': {
    'nested': text('state/_METADATA', DEEP),
    'bad bytes': text('state/_METADATA', b'\xff'),
  },
  'not a JSON object': {'a list': text('state/_METADATA', '[1]')},
  'be read': {'tree is a text': edited('state/_METADATA', tree_metadata='x')},
  'not a plain file': {
    'a pipe': piped('state/_METADATA'),
    'manifest is a pipe': piped('state/manifest.ocdbt'),
  },
  'leads out of the folder': {
    'a link': linked('state/_METADATA'),
    'values are a link': linked('state/d'),
  },
  'cannot be read': {'manifest is empty': text('state/manifest.ocdbt', '')},
  'cannot be read: OUT_OF_RANGE': {
    'entries are truncated': truncated('state/d'),
    'values are truncated': truncated('state/ocdbt.process_0/d'),
  },
}
CASES = [
  pytest.param(
    'hf' if kind == 'torch' else kind,
    damage,
    said,
    id=f'{kind}-{name}',
    marks=[pytest.mark.hf] if kind == 'torch' else [],
  )
  for kind, table in (
    ('hf', HF),
    ('torch', TORCH),
    ('t5x', T5X),
    ('orbax', ORBAX),
  )
  for said, cases in table.items()
  for name, damage in cases.items()
]
