"""Exported models trained under transformers: bash tools/test.sh --hf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import unfreeze
from hf_cases import assert_same, batch, export, load, of_variant, random_model

from t5x_variants import activations
from t5x_variants.weights import hugging_face

pytestmark = [
  pytest.mark.hf,
  # Of transformers, torch and what they import.
  pytest.mark.filterwarnings('ignore'),
]
# Every activation that brings code.
BROUGHT = [
  *(
    activations.rational.rational(version=version)
    for version in activations.rational.VERSIONS
  ),
  activations.get('polyrelu'),
  activations.polycom.polynorm(order=2),
  activations.get('xielu'),
]
brought = pytest.mark.parametrize(
  'activation', BROUGHT, ids=lambda activation: activation.name
)
gated = pytest.mark.parametrize(
  'gated', [False, True], ids=['ungated', 'gated']
)


def loss_of(loaded):
  import torch

  inputs, _, targets = batch()
  return loaded(
    input_ids=torch.tensor(inputs, dtype=torch.long),
    attention_mask=torch.tensor(inputs > 0),
    labels=torch.tensor(targets, dtype=torch.long),
  ).loss


def coefficients_of(loaded):
  found = {
    name: value for name, value in loaded.named_parameters() if '.act.' in name
  }
  assert found
  return found


def decayed_by_trainer(loaded):
  """The names of the parameters that Trainer decays."""
  import transformers

  return transformers.Trainer.get_decay_parameter_names(None, loaded)


def optimizer_of(loaded, as_trainer):
  """AdamW over two groups, as Trainer makes them, or over everything."""
  import torch

  decayed = decayed_by_trainer(loaded)
  groups = [[], []]
  for name, value in loaded.named_parameters():
    groups[as_trainer and name not in decayed].append(value)
  return torch.optim.AdamW(
    [
      {'params': values, 'weight_decay': decay}
      for values, decay in zip(groups, (0.1, 0.0), strict=True)
      if values
    ],
    lr=0.01,
  )


def train(loaded, optimizer, steps):
  for _ in range(steps):
    optimizer.zero_grad()
    loss_of(loaded).backward()
    optimizer.step()


@pytest.mark.parametrize('fresh', [False, True])
def test_it_trains_under_transformers(fresh, tmp_path):
  """Coefficients have a gradient there, equal to ours, those at 0 too."""
  import torch

  model, params = random_model(**of_variant('rational_glu'))
  if fresh:
    start = model.config.feed_forward.activation.init()
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


@pytest.mark.parametrize('as_trainer', [True, False])
@pytest.mark.parametrize('name', ['rational', 'polynorm', 'xielu'])
def test_training_goes_on_after_saving_and_loading(name, as_trainer, tmp_path):
  """An optimizer's state has no names: it goes by the parameters' order."""
  import torch

  export(tmp_path / 'hf', *random_model(**of_variant(name)))
  whole = load(tmp_path / 'hf', True)
  train(whole, optimizer_of(whole, as_trainer), 6)
  first = load(tmp_path / 'hf', True)
  optimizer = optimizer_of(first, as_trainer)
  train(first, optimizer, 3)
  first.save_pretrained(tmp_path / 'saved')
  torch.save(optimizer.state_dict(), tmp_path / 'optimizer.pt')
  second = load(tmp_path / 'saved', True)
  optimizer = optimizer_of(second, as_trainer)
  optimizer.load_state_dict(torch.load(tmp_path / 'optimizer.pt'))
  train(second, optimizer, 3)
  expected = whole.state_dict()
  for key, value in second.state_dict().items():
    torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)


@brought
@gated
def test_a_model_made_from_its_config(activation, gated, tmp_path):
  """It starts where ours does, and Trainer does not decay its coefficients."""
  import torch
  import transformers

  model, params = random_model(activation=activation, gated=gated)
  export(tmp_path / 'hf', model, params)
  config = transformers.AutoConfig.from_pretrained(
    tmp_path / 'hf', trust_remote_code=True
  )
  for dtype in (torch.float32, torch.bfloat16):
    made = transformers.AutoModelForSeq2SeqLM.from_config(
      config, trust_remote_code=True, dtype=dtype
    )
    assert made.lm_head.weight.dtype == dtype
    initial = model.config.feed_forward.activation.init()
    found = coefficients_of(made)
    assert len(found) == 5 * len(initial)
    for name, value in found.items():
      assert value.dtype == torch.float32
      np.testing.assert_array_equal(
        value.detach().numpy(), initial[name.rpartition('.')[2]]
      )
  decayed = set(decayed_by_trainer(made))
  assert not found.keys() & decayed
  matrices = {n for n, value in made.named_parameters() if value.ndim == 2}
  assert {n for n in matrices if 'bias' not in n} <= decayed


@brought
@gated
def test_coefficients_stay_float32(activation, gated, tmp_path):
  """Loaded in bfloat16, moved to it, and back from a folder in it."""
  import torch
  import transformers

  model, params = random_model(activation=activation, gated=gated)
  export(tmp_path / 'hf', model, params)
  exact = coefficients_of(load(tmp_path / 'hf', True))
  loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    tmp_path / 'hf', trust_remote_code=True, dtype=torch.bfloat16
  )
  loaded.save_pretrained(tmp_path / 'half')
  for half in (
    loaded,
    load(tmp_path / 'hf', True).to(torch.bfloat16),
    transformers.AutoModelForSeq2SeqLM.from_pretrained(
      tmp_path / 'half', trust_remote_code=True
    ),
  ):
    assert half.lm_head.weight.dtype == torch.bfloat16
    for name, value in coefficients_of(half).items():
      assert torch.equal(value, exact[name])
    assert torch.isfinite(loss_of(half))
  rounded = jax.tree.map_with_path(
    lambda path, leaf: (
      leaf
      if path[-2].key == 'activation'
      else np.asarray(jnp.asarray(leaf, jnp.bfloat16), np.float32)
    ),
    params,
  )
  assert_same(tmp_path / 'half', model, rounded)


def test_coefficients_that_a_folder_lacks_have_their_initial_values(tmp_path):
  """Weights of a plain T5 1.1 go on with an activation that learns."""
  import transformers

  model, params = random_model(**of_variant('rational_glu'))
  export(tmp_path / 'rational', model, params)
  plain, _ = random_model(activation='gelu', gated=True)
  for stack in params.values():
    for name in [key for key in stack if key.startswith('layers_')]:
      stack[name]['mlp'].pop('activation')
  export(tmp_path / 'plain', plain, params)
  config = transformers.AutoConfig.from_pretrained(
    tmp_path / 'rational', trust_remote_code=True
  )
  made = load(tmp_path / 'rational', True)
  loaded = type(made).from_pretrained(tmp_path / 'plain', config=config)
  initial = model.config.feed_forward.activation.init()
  for name, value in coefficients_of(loaded).items():
    np.testing.assert_array_equal(
      value.detach().numpy(), initial[name.rpartition('.')[2]]
    )


def test_a_folder_of_before_the_initial_values(tmp_path):
  """Its config.json has lengths; it loads, and imports, as it did."""
  import json

  model, params = random_model(**of_variant('rational'))
  export(tmp_path / 'hf', model, params)
  file = tmp_path / 'hf/config.json'
  content = json.loads(file.read_text())
  values = content['activation']['coefficients']
  content['activation']['coefficients'] = {
    key: len(values[key]) for key in ('numerator', 'denominator')
  }
  file.write_text(json.dumps(content))
  assert_same(tmp_path / 'hf', model, params)
  loaded = load(tmp_path / 'hf', True)
  act = loaded.encoder.block[0].layer[-1].DenseReluDense.act
  assert [name for name, _ in act.named_parameters()] == [
    'denominator',
    'numerator',
  ]
  assert loss_of(loaded).isfinite()
  # Without weights there is nothing to start from.
  assert loss_of(type(loaded)(loaded.config)).isnan()
