"""Exported models under transformers: bash tools/test.sh --hf."""

import json

import jax
import numpy as np
import pytest
from configs import t5_config
from hf_cases import (
  LEARNED,
  SIZES,
  VARIANTS,
  assert_same,
  assert_same_logits,
  batch,
  export,
  load,
  of_variant,
  random_model,
)

from t5x_variants import activations, errors
from t5x_variants.model import decoding, network, parameters
from t5x_variants.weights import hf_config, hugging_face, matching, source

pytestmark = [
  pytest.mark.hf,
  # Of transformers, torch and what they import.
  pytest.mark.filterwarnings('ignore'),
]


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_gives_our_logits_and_our_tokens(name, tmp_path):
  import torch

  model, params = random_model(**of_variant(name))
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', name in LEARNED)
  assert_same_logits(loaded, model, params)
  inputs, _, _ = batch()

  @jax.jit
  def greedy(eos_id):
    decodes, _ = decoding.greedy(model, params, inputs, length=8, eos_id=eos_id)
    return decodes[:, 0]

  never = SIZES['vocab_size']
  # Of one input at least the text then ends early.
  eos_id = int(greedy(never)[0, 3])
  for end in (never, eos_id):
    made = loaded.generate(
      input_ids=torch.tensor(inputs, dtype=torch.long),
      attention_mask=torch.tensor(inputs > 0),
      do_sample=False,
      max_new_tokens=8,
      suppress_tokens=[0],
      eos_token_id=end,
    ).numpy()[:, 1:]
    decoded = np.asarray(greedy(end))[:, : made.shape[1]]
    np.testing.assert_array_equal(made, decoded)
  assert (decoded[0] == 0).any()


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_tied_and_scanned(tied, scan, tmp_path):
  """Tied logits are scaled by d_model^-0.5, those of T5 1.1 are not."""
  model, params = random_model(
    activation='gelu', gated=True, logits_via_embedding=tied, scan_layers=scan
  )
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', False)
  assert_same_logits(loaded, model, params)


@pytest.mark.parametrize(
  'activation, gated',
  [
    *((name, False) for name in ('sigmoid', 'linear', 'gelu_exact')),
    *((name, True) for name in ('squared_relu', 'gelu_exact', 'xielu')),
    ('polyrelu', True),
    (activations.polycom.polynorm(order=2), False),
    (activations.polycom.polyrelu(order=4), True),
    *(
      (activations.rational.rational(version=version), False)
      for version in activations.rational.VERSIONS
    ),
  ],
  ids=str,
)
def test_the_rest_of_the_table(activation, gated, tmp_path):
  model, params = random_model(activation=activation, gated=gated)
  export(tmp_path / 'hf', model, params)
  learned = bool(model.config.feed_forward.activation.init())
  loaded = load(tmp_path / 'hf', learned)
  assert_same_logits(loaded, model, params)


@pytest.mark.parametrize('name, tied', [('geglu', False), ('geglu', True)])
@pytest.mark.parametrize('form', ['safetensors', 'sharded', 'bin'])
def test_what_transformers_saves_imports(name, tied, form, tmp_path):
  import torch

  model, params = random_model(**of_variant(name), logits_via_embedding=tied)
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', False)
  again = tmp_path / 'again'
  size = '5KB' if form == 'sharded' else '5GB'
  loaded.save_pretrained(again, max_shard_size=size)
  if form == 'bin':
    (again / 'model.safetensors').unlink()
    torch.save(loaded.state_dict(), again / 'pytorch_model.bin')
  assert (again / 'model.safetensors').is_file() == (form == 'safetensors')
  assert_same(again, model, params)


@pytest.mark.parametrize('name', sorted(LEARNED))
def test_the_learned_ones_survive_a_round_trip(name, tmp_path):
  """Through transformers' own saving, which takes the modeling file along."""
  model, params = random_model(**of_variant(name))
  export(tmp_path / 'hf', model, params)
  load(tmp_path / 'hf', True).save_pretrained(tmp_path / 'again')
  assert_same(tmp_path / 'again', model, params)
  assert_same_logits(load(tmp_path / 'again', True), model, params)


def test_a_learned_export_is_no_plain_t5(tmp_path):
  """Without its code it must not load as something else."""
  import transformers

  model, params = random_model(**of_variant('rational_glu'))
  export(tmp_path / 'hf', model, params)
  with pytest.raises(KeyError, match='rational'):
    transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'hf')


def test_the_byte_vocabulary_is_byt5s():
  """For text; ByT5 counts the sentinels the other way round."""
  from transformers import ByT5Tokenizer

  from t5x_variants.data.text import vocabularies

  text = 'Grüße, T5!'
  ours = vocabularies.byte()
  theirs = ByT5Tokenizer(extra_ids=100)
  assert theirs(text).input_ids == [*ours.encode(text), ours.eos_id]
  assert len(theirs) == ours.vocab_size == 359
  assert theirs.pad_token_id == ours.pad_id
  assert theirs.convert_tokens_to_ids('<extra_id_0>') == 259
  assert vocabularies.num_sentinels(ours) == 100  # From 358 down.


def test_both_lists_of_learned_activations_agree():
  from t5x_variants.weights import modeling_t5x_variants

  assert set(modeling_t5x_variants.FORMULAS) == set(hf_config.LEARNED)


def made_new(kind, options):
  """A model that transformers makes from a new configuration."""
  import torch
  import transformers

  torch.manual_seed(0)
  sizes = {
    'vocab_size': SIZES['vocab_size'],
    'd_model': SIZES['emb_dim'],
    'd_kv': SIZES['head_dim'],
    'd_ff': SIZES['mlp_dim'],
    'num_heads': SIZES['num_heads'],
    'num_layers': SIZES['num_encoder_layers'],
    'num_decoder_layers': SIZES['num_decoder_layers'],
  }
  config = getattr(transformers, f'{kind}Config')(**sizes | options)
  return getattr(transformers, f'{kind}ForConditionalGeneration')(config).eval()


@pytest.mark.parametrize(
  'kind, options, tied',
  [
    ('T5', {}, True),
    ('T5', {'feed_forward_proj': 'gated-gelu'}, True),
    (
      'T5',
      {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
      False,
    ),
    ('T5', {'feed_forward_proj': 'gelu', 'tie_word_embeddings': False}, False),
    ('MT5', {}, False),
    ('MT5', {'tie_word_embeddings': False}, False),
  ],
)
def test_what_transformers_makes_from_a_new_configuration(
  kind, options, tied, tmp_path
):
  """Its matrices are always tied; T5 1.1 and mT5 do not scale the logits."""
  theirs = made_new(kind, options)
  theirs.save_pretrained(tmp_path / 'new')
  projection = theirs.config.feed_forward_proj
  config = t5_config(
    **SIZES,
    activation={'gelu': 'gelu_exact'}.get(
      projection, projection.removeprefix('gated-')
    ),
    gated=projection.startswith('gated-'),
    logits_via_embedding=tied,
  )
  model = network.Transformer(config)
  shapes, _ = parameters.shapes_and_axes(model)
  names = source.unrolled_shapes(matching.shapes_of(shapes))
  found = hugging_face.open_folder(str(tmp_path / 'new'), config, names)
  params = matching.exact(found, shapes, '')
  assert_same_logits(theirs, model, params, rtol=1e-4)
  other = t5_config(
    **SIZES,
    activation=config.feed_forward.activation,
    gated=config.feed_forward.gated,
    logits_via_embedding=not tied,
  )
  with pytest.raises(errors.UserError, match='scaled by'):
    hugging_face.open_folder(str(tmp_path / 'new'), other, names)


def test_a_model_without_a_head_gets_none(tmp_path):
  """It looks like one whose head is the token table, which it is not."""
  import transformers

  model, params = random_model(**of_variant('geglu'))
  export(tmp_path / 'hf', model, params)
  transformers.T5Model.from_pretrained(tmp_path / 'hf').save_pretrained(
    tmp_path / 'headless'
  )
  with pytest.raises(errors.UserError, match='logits_dense/kernel: absent'):
    assert_same(tmp_path / 'headless', model, params)


def test_what_transformers_reads_is_what_counts(tmp_path):
  """It takes dense_act_fn, which it writes itself, before the projection."""
  import transformers

  theirs = made_new('T5', {'feed_forward_proj': 'gated-gelu'})
  theirs.save_pretrained(tmp_path)
  file = tmp_path / 'config.json'
  content = json.loads(file.read_text())
  assert content['dense_act_fn'] == 'gelu_new'
  file.write_text(json.dumps(content | {'dense_act_fn': 'silu'}))
  read = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
  act = read.encoder.block[0].layer[-1].DenseReluDense.act
  assert isinstance(act, type(transformers.activations.ACT2FN['silu']))
  config = t5_config(
    **SIZES, activation='gelu', gated=True, logits_via_embedding=True
  )
  with pytest.raises(errors.UserError, match="'gated-silu' there, 'gated-gelu"):
    hugging_face.open_folder(str(tmp_path), config, ())


@pytest.mark.parametrize('kind', ['UMT5', 'LongT5', 'Bart'])
def test_other_types_are_refused_by_name(kind, tmp_path):
  import transformers

  getattr(transformers, f'{kind}Config')().save_pretrained(tmp_path)
  config = t5_config(**SIZES)
  with pytest.raises(errors.UserError) as error:
    hugging_face.open_folder(str(tmp_path), config, ())
  assert f"of the type '{kind.lower()}'" in str(error.value)
  assert ('position bias in every layer' in str(error.value)) == (
    kind == 'UMT5'
  )


def test_umt5_has_a_position_bias_in_every_layer():
  """As the refusal says."""
  theirs = made_new('UMT5', {})
  for stack in (theirs.encoder, theirs.decoder):
    assert len(stack.block) > 1
    for block in stack.block:
      assert block.layer[0].SelfAttention.has_relative_attention_bias
