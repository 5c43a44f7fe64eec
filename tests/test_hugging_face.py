"""Exported models under transformers: bash tools/test.sh --hf."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import unfreeze

from t5x_variants import activations, errors, gin_utils, network
from t5x_variants.weights import fit, hf_config, hugging_face, source

pytestmark = [
  pytest.mark.hf,
  # Of transformers, torch and what they import.
  pytest.mark.filterwarnings('ignore'),
]
ROOT = pathlib.Path(__file__).parents[1]
VARIANTS = sorted(path.stem for path in (ROOT / 'gin/variants').glob('*.gin'))
LEARNED = {
  'polynorm',
  'polynorm_glu',
  'polyrelu',
  'rational',
  'rational_glu',
  'xielu',
}
SIZES = {
  'vocab_size': 40,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 4,
  # transformers' generate fails where the decoder has more layers.
  'num_encoder_layers': 3,
  'num_decoder_layers': 2,
  'mlp_dim': 24,
  'dropout_rate': 0.0,
}


def of_variant(name):
  """The activation and gating that a variant file gives."""
  model, _ = gin_utils.read_model(
    ['gin/models/tiny.gin', f'gin/variants/{name}.gin']
  )
  return {'activation': model.config.activation, 'gated': model.config.gated}


def random_model(seed=0, **options):
  """A model whose parameters, norms and coefficients too, are all random."""
  model = network.Transformer(network.T5Config(**SIZES | options))
  tokens = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
    functools.partial(model.init, enable_dropout=False),
    jax.random.key(0),
    tokens,
    tokens,
    tokens,
  )['params']
  generator = np.random.default_rng(seed)

  def value(path, leaf):
    noise = generator.normal(size=leaf.shape)
    if path[-1] == 'kernel':
      return noise * leaf.shape[-2] ** -0.5
    if path[-2] == 'activation':
      start = model.config.activation.init()[path[-1]]
      return start * (1 + 0.1 * noise) + 0.01 * noise
    return 1 + 0.1 * noise if path[-1] == 'scale' else noise

  flat = traverse_util.flatten_dict(unfreeze(shapes))
  return model, traverse_util.unflatten_dict(
    {k: value(k, leaf).astype(np.float32) for k, leaf in flat.items()}
  )


def batch():
  generator = np.random.default_rng(1)
  inputs = generator.integers(2, SIZES['vocab_size'], (3, 9)).astype(np.int32)
  inputs[0, 5:] = inputs[2, 8:] = 0
  targets = generator.integers(2, SIZES['vocab_size'], (3, 7)).astype(np.int32)
  return inputs, np.pad(targets[:, :-1], ((0, 0), (1, 0))), targets


def our_logits(model, params, inputs, shifted, targets):
  apply = jax.jit(functools.partial(model.apply, enable_dropout=False))
  return np.asarray(apply({'params': params}, inputs, shifted, targets))


def export(folder, model, params):
  folder.mkdir()
  flat = traverse_util.flatten_dict(params, sep='/')
  hugging_face.write(folder, model.config, source.unrolled(flat))


def load(folder, learned):
  import transformers

  if learned:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(
      folder, trust_remote_code=True
    ).eval()
  return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def their_logits(loaded, inputs, shifted):
  import torch

  with torch.no_grad():
    return loaded(
      input_ids=torch.tensor(inputs, dtype=torch.long),
      attention_mask=torch.tensor(inputs > 0),
      decoder_input_ids=torch.tensor(shifted, dtype=torch.long),
    ).logits.numpy()


def greedy(model, params, inputs, steps):
  """Our cached decoding, the most probable token at a time, EOS and all."""
  ones = jnp.ones((len(inputs), steps), jnp.int32)
  variables = {'params': params}
  _, state = model.apply(
    variables,
    jnp.ones_like(inputs),
    ones,
    ones,
    decode=True,
    enable_dropout=False,
    mutable=['cache'],
  )
  encoded = model.apply(
    variables, inputs, enable_dropout=False, method='encode'
  )

  def step(carry, _):
    cache, token = carry
    logits, state = model.apply(
      variables | {'cache': cache},
      encoded,
      inputs,
      token,
      token,
      enable_dropout=False,
      decode=True,
      max_decode_length=steps,
      mutable=['cache'],
      method='decode',
    )
    # As generate is told below: never padding, never the end.
    token = 2 + jnp.argmax(logits[:, :, 2:], -1).astype(jnp.int32)
    return (state['cache'], token), token[:, 0]

  start = jnp.zeros((len(inputs), 1), jnp.int32)
  _, tokens = jax.lax.scan(step, (state['cache'], start), length=steps)
  return tokens.T


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_gives_our_logits_and_our_tokens(name, tmp_path):
  import torch

  model, params = random_model(**of_variant(name))
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', name in LEARNED)
  inputs, shifted, targets = batch()
  ours = our_logits(model, params, inputs, shifted, targets)
  theirs = their_logits(loaded, inputs, shifted)
  assert np.abs(ours).max() > 0.5
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
  made = loaded.generate(
    input_ids=torch.tensor(inputs, dtype=torch.long),
    attention_mask=torch.tensor(inputs > 0),
    do_sample=False,
    max_new_tokens=8,
    suppress_tokens=[0, 1],
  ).numpy()
  decode = jax.jit(functools.partial(greedy, model, steps=8))
  np.testing.assert_array_equal(made[:, 1:], decode(params, inputs))


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_tied_and_scanned(tied, scan, tmp_path):
  """Tied logits are scaled by d_model^-0.5, those of T5 1.1 are not."""
  model, params = random_model(
    activation='gelu', gated=True, logits_via_embedding=tied, scan_layers=scan
  )
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', False)
  inputs, shifted, targets = batch()
  np.testing.assert_allclose(
    their_logits(loaded, inputs, shifted),
    our_logits(model, params, inputs, shifted, targets),
    rtol=0,
    atol=1e-4,
  )


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
  learned = bool(model.config.activation.init())
  loaded = load(tmp_path / 'hf', learned)
  inputs, shifted, targets = batch()
  np.testing.assert_allclose(
    their_logits(loaded, inputs, shifted),
    our_logits(model, params, inputs, shifted, targets),
    rtol=0,
    atol=1e-4,
  )


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
  inputs, shifted, targets = batch()
  np.testing.assert_allclose(
    their_logits(load(tmp_path / 'again', True), inputs, shifted),
    our_logits(model, params, inputs, shifted, targets),
    rtol=0,
    atol=1e-4,
  )


def assert_same(folder, model, params):
  names = traverse_util.flatten_dict(params, sep='/')
  found = hugging_face.open_folder(str(folder), model.config, names)
  jax.tree.map(
    np.testing.assert_array_equal, fit.exact(found, params, ''), params
  )


def test_a_learned_export_is_no_plain_t5(tmp_path):
  """Without its code it must not load as something else."""
  import transformers

  model, params = random_model(**of_variant('rational_glu'))
  export(tmp_path / 'hf', model, params)
  with pytest.raises(KeyError, match='rational'):
    transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'hf')


@pytest.mark.parametrize('fresh', [False, True])
def test_it_trains_under_transformers(fresh, tmp_path):
  """Coefficients have a gradient there, equal to ours, those at 0 too."""
  import torch

  model, params = random_model(**of_variant('rational_glu'))
  if fresh:
    start = model.config.activation.init()
    assert np.any(start['denominator'] == 0)
    params = jax.tree.map_with_path(
      lambda path, leaf: start.get(path[-1].key, leaf), params
    )
  export(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', True)
  inputs, shifted, targets = batch()
  loaded(
    input_ids=torch.tensor(inputs, dtype=torch.long),
    attention_mask=torch.tensor(inputs > 0),
    decoder_input_ids=torch.tensor(shifted, dtype=torch.long),
  ).logits.square().mean().backward()

  @jax.jit
  @jax.grad
  def gradient(params):
    logits = model.apply(
      {'params': params}, inputs, shifted, targets, enable_dropout=False
    )
    return jnp.mean(logits**2)

  ours = hugging_face.tensors_of(
    traverse_util.flatten_dict(unfreeze(gradient(params)), sep='/')
  )
  theirs = dict(loaded.named_parameters())
  acts = [name for name in ours if '.act.' in name]
  assert len(acts) == 10
  for name in acts:
    np.testing.assert_allclose(
      theirs[name].grad.numpy(), ours[name], rtol=1e-3, atol=1e-5
    )


def test_the_byte_vocabulary_is_byt5s():
  """For text; ByT5 counts the sentinels the other way round."""
  from transformers import ByT5Tokenizer

  from t5x_variants.data import vocabularies

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


def test_the_commands(tmp_path):
  """An import of a folder, its export, and the import of that."""

  def command(module, *arguments):
    return subprocess.run(
      [sys.executable, '-m', f't5x_variants.{module}', *arguments],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=250,
    )

  files = [
    '--gin_file=gin/models/tiny.gin',
    '--gin_file=gin/variants/geglu.gin',
  ]
  model, _ = gin_utils.read_model([f.partition('=')[2] for f in files])
  sizes = {key: getattr(model.config, key) for key in SIZES}
  model, params = random_model(**sizes, activation='gelu', gated=True)
  export(tmp_path / 'hf', model, params)
  done = command(
    'import_hf',
    *files,
    f'--checkpoint={tmp_path}/hf',
    f'--output={tmp_path}/imported',
  )
  assert not done.returncode, done.stderr
  done = command(
    'export_hf', f'--run={tmp_path}/imported', f'--output={tmp_path}/again'
  )
  assert not done.returncode, done.stderr
  assert 'T5ForConditionalGeneration' in done.stderr
  assert_same(tmp_path / 'again', model, params)
  described = json.loads((tmp_path / 'again/config.json').read_text())
  assert described['feed_forward_proj'] == 'gated-gelu'
  with pytest.raises(errors.UserError, match='gated-silu'):
    swish = network.T5Config(**sizes, activation='swish', gated=True)
    hugging_face.open_folder(f'{tmp_path}/again', swish, ())
