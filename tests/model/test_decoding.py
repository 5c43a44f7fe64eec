"""Decoding against enumeration, against the full pass, and against itself."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_cases import model, params_of
from quick_jit import jit

from t5x_variants import errors
from t5x_variants.model import decoding, network

EOS, LENGTH = 1, 4
SMALL = {'num_encoder_layers': 1, 'num_decoder_layers': 1, 'vocab_size': 6}
INPUTS = np.array([[2, 3, 4, 5, 1], [5, 5, 3, 0, 0]])


@functools.cache
def small(activation='gelu', gated=True, **choices):
  module = model(activation=activation, gated=gated, **SMALL, **choices)
  params = params_of(module)
  # So that some decodes end early and others do not.
  head = params['decoder']['logits_dense']
  return module, params | {
    'decoder': params['decoder']
    | {'logits_dense': {'kernel': 3 * head['kernel']}}
  }


def run(how, module, params, *rest, **options):
  options = {'length': LENGTH, 'eos_id': EOS} | options
  decode = jit(functools.partial(how, module, **options))
  return jax.tree.map(np.asarray, decode(params, INPUTS, *rest))


def scores(module, params, tokens):
  """Of tokens [B, N, L], by the full pass."""
  count = tokens.shape[1]
  score = jit(functools.partial(decoding.log_probabilities, module))
  flat = score(params, INPUTS.repeat(count, 0), tokens.reshape(-1, LENGTH))
  return np.asarray(flat).reshape(-1, count)


def full_pass(module, params, tokens):
  """Of tokens [B, L]: each position's most probable id, and log-probability.

  What a decoder without a cache says when it has these tokens so far.
  """
  logits = module.apply(
    {'params': params},
    INPUTS,
    jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    jnp.ones_like(tokens),
    enable_dropout=False,
  )
  log_prob = jax.nn.log_softmax(logits)
  found = jnp.take_along_axis(log_prob, tokens[..., None], -1)[..., 0]
  return logits.at[..., 0].set(-jnp.inf).argmax(-1), found


def test_greedy_with_the_cache_equals_greedy_without():
  """Of every activation: tests/model/test_network.py."""
  module, params = small('polynorm')

  @jit
  def both(params):
    tokens, log_prob = decoding.greedy(
      module, params, INPUTS, length=LENGTH, eos_id=EOS
    )
    return (
      tokens[:, 0],
      log_prob[:, 0],
      *full_pass(module, params, tokens[:, 0]),
    )

  tokens, log_prob, expected, each = map(np.asarray, both(params))
  np.testing.assert_array_equal(tokens, np.where(tokens > 0, expected, 0))
  each = (each * (tokens > 0)).sum(-1)
  np.testing.assert_allclose(log_prob, each, rtol=1e-4, atol=1e-5)


def test_one_beam_is_greedy():
  module, params = small()
  greedy = run(decoding.greedy, module, params)
  beam = run(decoding.beam_search, module, params, num_decodes=1)
  np.testing.assert_array_equal(beam[0], greedy[0])
  np.testing.assert_allclose(beam[1], greedy[1], rtol=1e-6)


def every_decode():
  """All that can be decoded: ids other than 0, up to EOS or the length."""
  others = range(EOS + 1, SMALL['vocab_size'])
  for size in range(LENGTH):
    for body in itertools.product(others, repeat=size):
      yield [*body, EOS] + [0] * (LENGTH - size - 1)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all(alpha):
  """The beam holds all 4 ** 3 texts that go on, and all 5 ways they can."""
  module, params = small()
  everything = np.array(list(every_decode()))
  total = scores(module, params, np.stack([everything] * len(INPUTS)))
  penalty = ((5 + (everything > 0).sum(-1)) / 6) ** alpha
  tokens, log_prob = run(
    decoding.beam_search, module, params, num_decodes=160, alpha=alpha
  )
  for row in range(len(INPUTS)):
    best = np.argsort(-total[row] / penalty)[:20]
    np.testing.assert_array_equal(tokens[row, :20], everything[best])
    np.testing.assert_allclose(
      log_prob[row, :20], total[row][best], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_scores_of_beams_are_those_of_the_texts(scan_layers):
  module, params = small()
  if scan_layers:
    module, params = (
      model(activation='gelu', gated=True, scan_layers=True, **SMALL),
      network.stack_layers(params),
    )
  tokens, log_prob = run(decoding.beam_search, module, params, num_decodes=3)
  np.testing.assert_allclose(
    log_prob, scores(module, params, tokens), rtol=1e-4, atol=1e-5
  )
  for found in tokens.reshape(-1, LENGTH):
    ends = np.flatnonzero(found == EOS)
    length = ends[0] + 1 if len(ends) else LENGTH
    assert found[:length].all() and not found[length:].any()


def test_what_cannot_end_is_cut_off():
  """Of a model that never says EOS the beams come back, best first."""
  module, params = small()
  tokens, log_prob = run(
    decoding.beam_search, module, params, num_decodes=3, eos_id=99
  )
  assert tokens.all()
  assert (np.diff(log_prob) <= 0).all()
  np.testing.assert_allclose(
    log_prob, scores(module, params, tokens), rtol=1e-4, atol=1e-5
  )


def test_samples_follow_the_model():
  """The first token's share among 4,000 draws, with all three settings."""
  module, params = small()
  options = {'num_decodes': 4000, 'length': 1}
  settings = {'temperature': 0.7, 'topk': 4, 'topp': 0.9}
  tokens, _ = run(
    decoding.sample, module, params, jax.random.key(0), **options, **settings
  )
  every = np.arange(6)[:, None]
  one = jit(functools.partial(decoding.log_probabilities, module))
  for row, found in enumerate(tokens[..., 0]):
    inputs = INPUTS[row : row + 1].repeat(6, 0)
    weights = np.exp(np.asarray(one(params, inputs, every)) / 0.7)
    weights[0] = 0
    order = np.argsort(-weights)
    weights[order[4:]] = 0
    share = weights[order] / weights.sum()
    weights[order[np.cumsum(share) - share >= 0.9]] = 0
    expected = weights / weights.sum()
    drawn = np.bincount(found, minlength=6) / found.size
    assert not drawn[expected == 0].any()
    spread = np.sqrt(expected * (1 - expected) / found.size)
    assert (abs(drawn - expected) <= 4 * spread + 1e-9).all()


def test_samples_depend_on_the_key_alone():
  module, params = small()
  drawn = [
    run(decoding.sample, module, params, jax.random.key(seed), num_decodes=5)
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
  assert (drawn[0][0] != drawn[2][0]).any()
  assert (np.diff(drawn[0][1]) <= 0).all()


@pytest.mark.parametrize(
  ('how', 'options'),
  [
    (decoding.beam_search, {'num_decodes': 0}),
    (decoding.beam_search, {'alpha': -1}),
    (decoding.sample, {'temperature': -0.5}),
    (decoding.sample, {'topp': 0.0}),
    (decoding.greedy, {'length': 0}),
  ],
)
def test_settings_out_of_range_are_refused(how, options):
  module, params = small()
  rest = (jax.random.key(0),) if how is decoding.sample else ()
  with pytest.raises(errors.UserError, match=next(iter(options))):
    how(module, params, INPUTS, *rest, **{'length': 3, 'eos_id': EOS} | options)
