"""Folders of transformers, looked at without it."""

import functools
import resource

import damage_cases
import jax
import numpy as np
import pytest
import safetensors.numpy
from configs import t5_config
from flax import traverse_util

from t5x_variants import activations, errors
from t5x_variants.model import network, parameters
from t5x_variants.weights import (
  hf_config,
  hf_names,
  hugging_face,
  matching,
  saved,
  source,
)

SIZES = {
  'vocab_size': 40,
  'emb_dim': 8,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'head_dim': 3,
  'mlp_dim': 12,
}
CONFIG = t5_config(**SIZES)  # GEGLU
# What T5 1.1 of that size has in transformers, read off its state_dict.
INSIDE = {
  'layer.0.layer_norm.weight': (8,),
  'layer.0.SelfAttention.q.weight': (6, 8),
  'layer.0.SelfAttention.k.weight': (6, 8),
  'layer.0.SelfAttention.v.weight': (6, 8),
  'layer.0.SelfAttention.o.weight': (8, 6),
}
CROSS = {
  'layer.1.layer_norm.weight': (8,),
  'layer.1.EncDecAttention.q.weight': (6, 8),
  'layer.1.EncDecAttention.k.weight': (6, 8),
  'layer.1.EncDecAttention.v.weight': (6, 8),
  'layer.1.EncDecAttention.o.weight': (8, 6),
}
MLP = {
  'layer_norm.weight': (8,),
  'DenseReluDense.wi_0.weight': (12, 8),
  'DenseReluDense.wi_1.weight': (12, 8),
  'DenseReluDense.wo.weight': (8, 12),
}


def theirs():
  """Names and shapes of transformers' T5 1.1."""
  shapes = {'shared.weight': (40, 8), 'lm_head.weight': (40, 8)}
  for stack, inside in (
    ('encoder', INSIDE | {f'layer.1.{k}': v for k, v in MLP.items()}),
    ('decoder', INSIDE | CROSS | {f'layer.2.{k}': v for k, v in MLP.items()}),
  ):
    where = f'{stack}.block.0.layer.0.SelfAttention'
    shapes[f'{where}.relative_attention_bias.weight'] = (32, 2)
    shapes[f'{stack}.final_layer_norm.weight'] = (8,)
    for index in range(2):
      shapes |= {f'{stack}.block.{index}.{k}': v for k, v in inside.items()}
  return shapes


@functools.cache
def shapes_of(config):
  return parameters.shapes_and_axes(network.Transformer(config))[0]


def random_values(config):
  generator = np.random.default_rng(0)
  return {
    name: generator.normal(size=shape).astype(np.float32)
    for name, shape in matching.shapes_of(shapes_of(config)).items()
  }


@pytest.fixture
def folder(tmp_path):
  hugging_face.write(tmp_path, CONFIG, random_values(CONFIG))
  return tmp_path


def opened(folder, config=CONFIG):
  names = source.unrolled_shapes(matching.shapes_of(shapes_of(config)))
  return hugging_face.open_folder(str(folder), config, names)


def test_names_and_shapes_are_theirs():
  tensors = hugging_face.tensors_of(random_values(CONFIG))
  assert {name: value.shape for name, value in tensors.items()} == theirs()


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('activation', ['gelu', 'rational', 'polynorm'])
def test_there_and_back(activation, scan, tmp_path):
  config = t5_config(**SIZES, activation=activation, scan_layers=scan)
  values = random_values(config)
  hugging_face.write(tmp_path, config, source.unrolled(values))
  params = matching.exact(opened(tmp_path, config), shapes_of(config), '')
  expected = traverse_util.unflatten_dict(values, sep='/')
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  files = {path.name for path in tmp_path.iterdir()}
  assert ('modeling_t5x_variants.py' in files) == (activation != 'gelu')


@pytest.mark.parametrize(
  'activation, gated, projection',
  [
    ('relu', False, 'relu'),
    ('gelu', False, 'gelu_new'),
    ('swish', False, 'silu'),
    ('sigmoid', True, 'gated-sigmoid'),
    ('linear', True, 'gated-linear'),
    ('relu', True, 'gated-relu'),
    ('gelu', True, 'gated-gelu'),
    ('swish', True, 'gated-silu'),
    ('squared_relu', False, 'relu2'),
    ('gelu_exact', True, 'gated-gelu_python'),
  ],
)
def test_what_transformers_has_a_name_for(activation, gated, projection):
  config = t5_config(**SIZES, activation=activation, gated=gated)
  assert hf_config.feed_forward_proj(config) == (projection, True)
  described = hf_config.config_of(config)
  assert described['model_type'] == 't5' and 'auto_map' not in described
  assert described['tie_word_embeddings'] is False


def test_what_goes_with_code():
  made = activations.rational.rational(version='C')
  config = t5_config(**SIZES, activation=made, gated=False)
  described = hf_config.config_of(config)
  initial = made.init()
  assert described['activation'] == {
    'name': 'rational',
    'version': 'C',
    'coefficients': {name: list(initial[name]) for name in initial},
  }
  # As transformers writes them back: an optimizer's state goes by order.
  assert list(described['activation']['coefficients']) == sorted(initial)
  # So that nothing but that code can load it.
  assert described['model_type'] != 't5'
  assert described['feed_forward_proj'] == 'rational'


def test_every_row_of_the_table_can_be_exported():
  for name in activations.names():
    hf_config.config_of(t5_config(**SIZES, activation=name))


def test_what_cannot_be_expressed_is_refused(tmp_path):
  own = activations.define('mine', lambda z, c: z, paper='none')
  config = t5_config(**SIZES, activation=own)
  with pytest.raises(errors.UserError, match="'mine' has no counterpart"):
    hugging_face.write(tmp_path, config, random_values(config))
  assert not list(tmp_path.iterdir())


def test_what_other_versions_of_transformers_write(folder):
  """Other words for the same, and the table three times over."""
  damage_cases.config(
    feed_forward_proj='gated-gelu_new',
    tie_word_embeddings=True,
    scale_decoder_outputs=False,
  )(folder, None)
  file = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  for stack in ('encoder', 'decoder'):
    tensors[f'{stack}.embed_tokens.weight'] = tensors['shared.weight'].copy()
  safetensors.numpy.save_file(tensors, file)
  params = matching.exact(opened(folder), shapes_of(CONFIG), '')
  expected = traverse_util.unflatten_dict(random_values(CONFIG), sep='/')
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_full_disk_leaves_nothing(tmp_path):
  """Stood in for by a limit on the size of a file."""
  values = random_values(CONFIG)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
  try:
    with pytest.raises(
      errors.UserError, match=r'cannot be written: .*too large'
    ):
      saved.write_folder(
        tmp_path / 'hf',
        lambda folder: hugging_face.write(folder, CONFIG, values),
      )
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())


def test_no_two_parameters_share_a_name():
  for activation in ('rational', 'polynorm', 'xielu'):
    names = random_values(t5_config(**SIZES, activation=activation))
    assert len({hf_names.name_of(name)[0] for name in names}) == len(names)
