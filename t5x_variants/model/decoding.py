"""Text from a model: sampled, greedy, by beam search; and scores of a text.

Every function takes a `network.Transformer`, its parameters and token ids, and
can be jitted with the module and the sizes static. The decoder runs one
position at a time and keeps keys and values in a cache. Names are t5x's
(`num_decodes`, `alpha`, `temperature`, `topk`, `topp`).

A log-probability is that of the model itself, EOS included, whatever the
temperature or the length penalty that the tokens were chosen by: the one that
`log_probabilities` gives to the same tokens. Padding, id 0, is never chosen.

Shapes: B inputs, K their length, N decodes of each, L tokens of a decode at
most, V vocabulary. A decode ends with EOS, behind which all is 0; one that was
cut off at L has none.

References:
  Wu et al., Google's Neural Machine Translation System, 2016, section 7: the
  length penalty ((5 + length) / 6) ** alpha.
  Holtzman et al., The Curious Case of Neural Text Degeneration, 2020: top-p.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Int

from t5x_variants import errors

PADDING = 0
# A sum with it stays finite, and it loses against any real log-probability.
_NEVER = -1e9

Decodes = tuple[Int[Array, 'B N L'], Float[Array, 'B N']]


def log_probabilities(
  module: nn.Module,
  params: Mapping,
  inputs: Int[Array, 'B K'],
  targets: Int[Array, 'B L'],
) -> Float[Array, ' B']:
  """How probable the targets are after the inputs, in nats, as a logarithm.

  Args:
    module: a `network.Transformer`.
    params: its parameters.
    inputs: encoder tokens; 0 is padding.
    targets: what is scored, EOS included if it has one; 0 is padding.

  Returns:
    float32 sums over the targets' tokens.
  """
  logits: Any = module.apply(
    {'params': params},
    inputs,
    jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    targets,
    enable_dropout=False,
  )
  found = jnp.take_along_axis(
    jax.nn.log_softmax(logits), targets[..., None], axis=-1
  )[..., 0]
  return jnp.sum(found * (targets != PADDING), axis=-1)


def sample(
  module: nn.Module,
  params: Mapping,
  inputs: Int[Array, 'B K'],
  rng: Array,
  *,
  length: int,
  eos_id: int | Int[Array, ''],
  num_decodes: int = 1,
  temperature: float = 1.0,
  topk: int = 0,
  topp: float = 1.0,
) -> Decodes:
  """Draws token after token.

  Args:
    module: a `network.Transformer`.
    params: its parameters.
    inputs: encoder tokens; 0 is padding.
    rng: a key; not used at temperature 0.
    length: tokens of a decode at most.
    eos_id: the token that ends a decode.
    num_decodes: decodes of each input.
    temperature: divides the logits; 0 takes the most probable token (greedy).
    topk: draws among so many most probable tokens only; 0: among all.
    topp: draws among the fewest tokens that have at least this probability
      together.

  Returns:
    The decodes, most probable first, and their log-probabilities.

  Raises:
    errors.UserError: a setting outside its range.
  """
  _check_positive(length=length, num_decodes=num_decodes)
  if temperature < 0 or topk < 0 or not 0 < topp <= 1:
    raise errors.UserError(
      f'temperature={temperature!r}, topk={topk!r}, topp={topp!r}: the '
      'temperature and topk must be 0 or more, topp above 0 and at most 1.'
    )
  step, cache = _start(module, params, inputs, length, num_decodes)
  rows = inputs.shape[0] * num_decodes

  def body(carry):
    index, tokens, total, ended, cache = carry
    logits, cache = step(cache, _last(tokens, index))
    choices = logits.at[:, PADDING].set(_NEVER)
    if temperature == 0:
      chosen = jnp.argmax(choices, axis=-1)
    else:
      kept = _most_probable(choices / temperature, topk, topp)
      chosen = jax.random.categorical(jax.random.fold_in(rng, index), kept)
    chosen = jnp.where(ended, PADDING, chosen)
    gained = _at(jax.nn.log_softmax(logits), chosen)
    total += jnp.where(ended, 0.0, gained)
    tokens = tokens.at[:, index].set(chosen)
    return index + 1, tokens, total, ended | (chosen == eos_id), cache

  def unfinished(carry):
    index, _, _, ended, _ = carry
    return (index < length) & ~jnp.all(ended)

  tokens = jnp.zeros((rows, length), jnp.int32)
  start = (0, tokens, jnp.zeros(rows), jnp.zeros(rows, bool), cache)
  _, tokens, total, _, _ = lax.while_loop(unfinished, body, start)
  return _best_first(*_split((tokens, total), num_decodes))


def greedy(
  module: nn.Module,
  params: Mapping,
  inputs: Int[Array, 'B K'],
  rng: Array | None = None,
  *,
  length: int,
  eos_id: int | Int[Array, ''],
) -> Decodes:
  """Takes the most probable token each time, whatever `rng`; see `sample`."""
  del rng
  return sample(
    module,
    params,
    inputs,
    jax.random.key(0),
    length=length,
    eos_id=eos_id,
    temperature=0.0,
  )


class _Beams(NamedTuple):
  """The state of a beam search.

  Of each input N decodes go on and N have ended, both best first. `score` is
  a log-probability over its length penalty.
  """

  index: Any
  tokens: Int[Array, 'B N L']
  log_prob: Float[Array, 'B N']
  ended_tokens: Int[Array, 'B N L']
  ended_log_prob: Float[Array, 'B N']
  ended_score: Float[Array, 'B N']
  cache: Mapping


def beam_search(
  module: nn.Module,
  params: Mapping,
  inputs: Int[Array, 'B K'],
  rng: Array | None = None,
  *,
  length: int,
  eos_id: int | Int[Array, ''],
  num_decodes: int = 4,
  alpha: float = 0.6,
) -> Decodes:
  """Searches for the decodes of the highest penalised log-probability.

  Args:
    module: a `network.Transformer`.
    params: its parameters.
    inputs: encoder tokens; 0 is padding.
    rng: not used; all ways of decoding take the same arguments.
    length: tokens of a decode at most.
    eos_id: the token that ends a decode.
    num_decodes: how many decodes of each input are followed and returned.
    alpha: of the length penalty; 0 is none, more favours long decodes.

  Returns:
    The decodes, best score first, and their log-probabilities without the
    penalty. What has not ended within `length` comes after all that has.

  Raises:
    errors.UserError: a setting outside its range.
  """
  del rng
  _check_positive(length=length, num_decodes=num_decodes)
  if alpha < 0:
    raise errors.UserError(f'alpha={alpha!r}: it must be 0 or more.')
  step, cache = _start(module, params, inputs, length, num_decodes)
  batch, count = inputs.shape[0], num_decodes

  def body(beams: _Beams) -> _Beams:
    logits, cache = step(beams.cache, _last(_joined(beams.tokens), beams.index))
    gained = _split(jax.nn.log_softmax(logits), count)
    total = beams.log_prob[..., None] + gained.at[..., PADDING].set(_NEVER)
    vocabulary = total.shape[-1]
    # Of 2 N continuations at most N end here, so that N others go on.
    total, flat = lax.top_k(total.reshape(batch, -1), 2 * count)
    parent, token = flat // vocabulary, flat % vocabulary
    tokens = jnp.take_along_axis(beams.tokens, parent[..., None], axis=1)
    tokens = tokens.at[:, :, beams.index].set(token)
    ends = token == eos_id
    live_total, order = lax.top_k(jnp.where(ends, _NEVER, total), count)
    kept = jnp.take_along_axis(parent, order, axis=1)
    penalty = _length_penalty(beams.index + 1, alpha)
    real = ends & (total > _NEVER / 2)
    score = jnp.where(real, total / penalty, _NEVER)
    return _Beams(
      beams.index + 1,
      _chosen(tokens, order),
      live_total,
      *_merged(beams, tokens, total, score),
      _reordered(cache, _rows(kept), module.config.scan_layers),
    )

  def unfinished(beams: _Beams):
    # The best that a live decode can still reach: no token more, at the
    # largest penalty.
    best = beams.log_prob[:, 0] / _length_penalty(length, alpha)
    hope = jnp.any(best > beams.ended_score[:, -1])
    return (beams.index < length) & hope

  none = jnp.zeros((batch, count, length), jnp.int32)
  never = jnp.full((batch, count), _NEVER)
  # All decodes of an input begin alike: only the first counts.
  log_prob = never.at[:, 0].set(0.0)
  beams = _Beams(jnp.int32(0), none, log_prob, none, never, never, cache)
  beams = lax.while_loop(unfinished, body, beams)
  # What was cut off stands behind all that has ended, in its own order.
  score = beams.log_prob + _NEVER / 2
  tokens, log_prob, _ = _merged(beams, beams.tokens, beams.log_prob, score)
  return tokens, log_prob


def _start(module, params, inputs, length, num_decodes) -> tuple[Callable, Any]:
  """The decoder's step, `(cache, tokens [rows]) -> logits, cache`; its cache.

  Inputs are encoded once and stand N times below one another.
  """
  variables = {'params': params}
  encoded = module.apply(
    variables, inputs, enable_dropout=False, method='encode'
  )
  encoded, inputs = (
    jnp.repeat(x, num_decodes, axis=0) for x in (encoded, inputs)
  )
  blank = jnp.zeros((inputs.shape[0], length), jnp.int32)
  shapes = jax.eval_shape(
    lambda: module.apply(
      variables,
      inputs,
      blank,
      blank,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )[1]['cache']
  )
  cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def step(cache, tokens):
    logits, changed = module.apply(
      variables | {'cache': cache},
      encoded,
      inputs,
      tokens[:, None],
      tokens[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=length,
      mutable=['cache'],
      method='decode',
    )
    return logits[:, 0], changed['cache']

  return step, cache


def _last(tokens: Int[Array, 'R L'], index) -> Int[Array, ' R']:
  """The token before this index; 0 before the first."""
  before = lax.dynamic_index_in_dim(
    tokens, jnp.maximum(index - 1, 0), axis=1, keepdims=False
  )
  return jnp.where(index > 0, before, 0)


def _most_probable(logits, topk: int, topp: float):
  """Puts the tokens that must not be drawn out of reach."""
  if topk:
    least = lax.top_k(logits, min(topk, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < least, _NEVER, logits)
  if topp < 1:
    falling = -jnp.sort(-logits, axis=-1)
    share = jax.nn.softmax(falling)
    # A token stays if those before it do not have enough.
    stays = jnp.cumsum(share, axis=-1) - share < topp
    least = jnp.min(jnp.where(stays, falling, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits < least, _NEVER, logits)
  return logits


def _length_penalty(length, alpha: float):
  return ((5.0 + length) / 6.0) ** alpha


def _at(values: Float[Array, 'R V'], tokens: Int[Array, ' R']):
  return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]


def _split(tree, num_decodes: int):
  """[B * N, ...] to [B, N, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, num_decodes, *x.shape[1:]), tree)


def _joined(x):
  """[B, N, ...] to [B * N, ...]."""
  return x.reshape(-1, *x.shape[2:])


def _chosen(x: Array, order: Int[Array, 'B N']) -> Array:
  """Of [B, M, ...] what is at these places of its second axis."""
  order = order.reshape(*order.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, order, axis=1)


def _best_first(tokens, log_prob) -> Decodes:
  order = jnp.argsort(-log_prob, axis=1)
  return _chosen(tokens, order), _chosen(log_prob, order)


def _merged(
  beams: _Beams, tokens, log_prob, score
) -> tuple[Array, Array, Array]:
  """The N best of what has ended and these; tokens, log_prob, score."""
  score = jnp.concatenate([beams.ended_score, score], axis=1)
  score, order = lax.top_k(score, beams.ended_score.shape[1])
  tokens, log_prob = (
    _chosen(jnp.concatenate(both, axis=1), order)
    for both in (
      (beams.ended_tokens, tokens),
      (beams.ended_log_prob, log_prob),
    )
  )
  return tokens, log_prob, score


def _rows(parent: Int[Array, 'B N']) -> Int[Array, ' R']:
  """Numbers of rows [B * N] from numbers within each input."""
  first = jnp.arange(parent.shape[0])[:, None] * parent.shape[1]
  return (first + parent).reshape(-1)


def _reordered(cache, rows: Int[Array, ' R'], scan_layers: bool):
  """The cache of the decodes that go on."""
  axis = 1 if scan_layers else 0
  return traverse_util.path_aware_map(
    lambda path, x: (
      x if path[-1] == 'cache_index' else jnp.take(x, rows, axis=axis)
    ),
    cache,
  )


def _check_positive(**values: int) -> None:
  for name, value in values.items():
    errors.check_positive(name, value)
