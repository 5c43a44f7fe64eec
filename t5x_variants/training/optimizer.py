"""Adafactor with T5's meaning, and an own group for learned coefficients.

Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as T5 uses it, with
G the gradient, beta_t = 1 - (t + 1)^-0.8 and t counted from 0:

    V   <- beta_t V + (1 - beta_t) (G^2 + epsilon1)     (rows and columns only)
    U    = G / sqrt(V)
    U   <- U / max(1, RMS(U) / clipping_threshold)
    W   <- W - learning_rate * max(epsilon2, RMS(W)) * U

RMS is over one layer's parameter. A stack of scanned layers is one array
`[layers, ...]`, so the rule is mapped over the layers; plain optax would clip
and scale all layers of a stack together.

Coefficients of activations are a few numbers of very different size. The
scale max(epsilon2, RMS(W)) suits them badly: a zero bias would hardly move, a
large coefficient would drive the small ones. They get Adam, with a rate of
their own.
"""

import math
import re
from collections.abc import Mapping

import jax
import optax
from flax import traverse_util

from t5x_variants import errors

COEFFICIENT_AXIS = 'mlp_activations'
_LAYER_AXIS = 'layers'


def adafactor(
  axes: Mapping,
  learning_rate: optax.Schedule,
  *,
  decay_rate: float = 0.8,
  epsilon1: float = 1e-30,
  epsilon2: float = 1e-3,
  clipping_threshold: float = 1.0,
  min_dim_size_to_factor: int = 128,
  coefficients: optax.GradientTransformation | None = None,
  frozen: str | None = None,
) -> optax.GradientTransformation:
  """Adafactor for all parameters, another rule for the coefficients.

  Args:
    axes: tree like the parameters with a tuple of logical axis names for each
      leaf: tells scanned parameters and coefficients from the rest.
    learning_rate: relative step size, by step.
    decay_rate: exponent of beta_t.
    epsilon1: added to the squared gradient.
    epsilon2: smallest scale a parameter is taken to have.
    clipping_threshold: largest RMS of an update before scaling.
    min_dim_size_to_factor: V of smaller matrices is kept whole, scanned or
      not. (t5x keeps rows and columns of every scanned matrix; a scanned
      model and its unrolled twin would then train differently.)
    coefficients: the rule for learned coefficients, for example
      `coefficient_adam(...)`; None puts them into Adafactor too, as t5x does.
    frozen: a regular expression found in the names, 'encoder/encoder_norm/
      scale', of parameters that stay as they are; None trains all.

  Raises:
    errors.UserError: `frozen` is no regular expression, or is found in no
      name, or in all.
  """
  rule = optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      epsilon=epsilon1,
      min_dim_size_to_factor=min_dim_size_to_factor,
    ),
    optax.clip_by_block_rms(clipping_threshold),
    optax.scale_by_param_block_rms(epsilon2),
  )
  weights = optax.chain(
    per_layer(rule, axes), optax.scale_by_learning_rate(learning_rate)
  )
  return with_groups(weights, coefficients, frozen, axes)


def coefficient_adam(
  learning_rate: optax.Schedule,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.98,
) -> optax.GradientTransformation:
  """AdamW for learned coefficients; no weight decay unless asked for.

  Decay pulls the learned function towards 0. What RAFT's published code
  (UKPLab/2022-RAFT) says of it: in pretraining, with these betas, the
  coefficients' decay was 0, and a later change made it an option of default
  0.1; which of the two made the checkpoints that the paper's results start
  from is not known. In fine-tuning it is 0.1, as for all weights. PolyCom's
  dense models decay their coefficients by 0, its mixture of experts by 0.1.
  """
  return optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def with_groups(
  weights: optax.GradientTransformation,
  coefficients: optax.GradientTransformation | None,
  frozen: str | None,
  axes: Mapping,
) -> optax.GradientTransformation:
  """Nothing for what is frozen, else `coefficients` for those, or `weights`."""
  constant = frozen_names(frozen, axes)

  def label(path, names) -> str:
    if '/'.join(path) in constant:
      return 'frozen'
    learned = coefficients is not None and COEFFICIENT_AXIS in names
    return 'coefficients' if learned else 'weights'

  rules = {
    'weights': weights,
    'coefficients': coefficients,
    'frozen': optax.set_to_zero(),
  }
  labels = _map_axes(label, axes)
  used = set(jax.tree.leaves(labels))
  if used == {'weights'}:
    return weights
  return optax.partition({name: rules[name] for name in used}, labels)


def frozen_names(frozen: str | None, axes: Mapping) -> set[str]:
  """Names of the parameters in which the regular expression is found."""
  if frozen is None:
    return set()
  names = set(traverse_util.flatten_dict(axes, sep='/'))
  try:
    found = {name for name in names if re.search(frozen, name)}
  except re.error as error:
    raise errors.UserError(
      f'FROZEN is {frozen!r}, which is no regular expression: {error}.'
    ) from error
  if not found or found == names:
    raise errors.UserError(
      f'FROZEN is {frozen!r}, which is found in '
      f'{"all names" if found else "no name"} of parameters: give a part of '
      'one of model-info.txt, such as token_embedder, or None.'
    )
  return found


def what_trains(frozen: str | None, shapes: Mapping) -> list[str]:
  """Lines that tell a person how many parameters train, and which.

  Args:
    frozen: see `adafactor`.
    shapes: tree like the parameters, of arrays or their shapes.

  Returns:
    A count, then the names, the layers of a stack as one; [] if all train.
  """
  if frozen is None:
    return []
  flat = traverse_util.flatten_dict(shapes, sep='/')
  constant = frozen_names(frozen, shapes)
  sizes = {name: math.prod(leaf.shape) for name, leaf in flat.items()}
  trains = sorted(flat.keys() - constant)
  lines: dict[str, dict[str, None]] = {}
  for name in trains:
    name = re.sub(r'layers_\d+', 'layers_*', name)
    lines.setdefault(name.split('/')[0], {})[name] = None
  return [
    f'FROZEN is {frozen!r}: {sum(sizes[n] for n in trains):,} of '
    f'{sum(sizes.values()):,} parameters train, {len(trains)} of {len(flat)} '
    'arrays:',
    *('  ' + ', '.join(names) for names in lines.values()),
  ]


def per_layer(
  rule: optax.GradientTransformation, axes: Mapping
) -> optax.GradientTransformation:
  """Applies `rule` to each layer of a scanned parameter on its own."""
  mapped = optax.GradientTransformation(
    jax.vmap(rule.init),
    lambda updates, state, params: jax.vmap(rule.update)(
      updates, state, params
    ),
  )

  def label(path, names) -> str:
    # Encoder and decoder may differ in depth, and one vmap has one length.
    return path[0] if _LAYER_AXIS in names[:1] else ''

  labels = _map_axes(label, axes)
  stacks = set(jax.tree.leaves(labels)) - {''}
  if not stacks:
    return rule
  return optax.partition({'': rule} | dict.fromkeys(stacks, mapped), labels)


def _map_axes(function, axes: Mapping) -> Mapping:
  """Maps `function(path, axis names)` over the tree of axis names."""
  return traverse_util.unflatten_dict(
    {
      path: function(path, names)
      for path, names in traverse_util.flatten_dict(axes).items()
    }
  )
