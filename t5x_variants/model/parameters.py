"""A model's parameters: shapes, logical axes, number, without memory."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import unfreeze
from flax.linen import partitioning as nn_partitioning

from t5x_variants import errors
from t5x_variants.model import network


def init(model: network.Transformer, rng) -> Mapping:
  """Flax variables of a model: parameters and their axis names."""
  tokens = jnp.ones((1, 8), jnp.int32)
  return model.init(rng, tokens, tokens, tokens, enable_dropout=False)


def shapes_and_axes(model: network.Transformer) -> tuple[Mapping, Mapping]:
  """Shapes of the parameters, and their logical axis names, without memory."""
  variables = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
  specs = unfreeze(nn_partitioning.get_axis_names(variables['params_axes']))
  axes = jax.tree.map(
    tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
  )
  return unfreeze(variables['params']), axes


def check_block(
  model: network.Transformer,
  shapes: Mapping,
  rows: int,
  lengths: Mapping[str, int] | None,
) -> None:
  """Refuses a feed-forward block that was named and cannot run here.

  Args:
    model: the network.
    shapes: of its parameters.
    rows: of a microbatch, over all devices.
    lengths: tokens of `inputs` and `targets` in a row; None: not known yet.

  Raises:
    errors.UserError: why FFN_IMPLEMENTATION cannot be.
  """
  implementation = model.config.feed_forward.implementation
  if implementation in (None, 'xla'):
    return
  lengths = lengths or {'inputs': 512, 'targets': 128}
  inputs, targets = (
    jax.ShapeDtypeStruct((rows, lengths[name]), jnp.int32)
    for name in ('inputs', 'targets')
  )
  try:
    jax.eval_shape(
      functools.partial(model.apply, enable_dropout=False),
      {'params': shapes},
      inputs,
      targets,
      targets,
    )
  except errors.UserError as error:
    raise errors.UserError(
      f'FFN_IMPLEMENTATION is {implementation!r}: {error}'
    ) from error


def count(params: Mapping) -> int:
  """Number of parameters."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def model_info(params: Mapping, axes: Mapping) -> str:
  """The table of `model-info.txt`: name, shape, logical axes, size."""
  flat_axes = traverse_util.flatten_dict(axes)
  rows = [
    (
      '/'.join(path),
      str(list(leaf.shape)),
      ', '.join(flat_axes[path]),
      f'{math.prod(leaf.shape):,}',
    )
    for path, leaf in sorted(traverse_util.flatten_dict(params).items())
  ]
  rows = [('parameter', 'shape', 'logical axes', 'size'), *rows]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
    '  '.join(
      [*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]
    )
    for row in rows
  ]
  coefficients = sum(
    math.prod(leaf.shape)
    for path, leaf in traverse_util.flatten_dict(params).items()
    if 'mlp_activations' in flat_axes[path]
  )
  return '\n'.join(
    [
      *lines,
      '',
      f'{count(params):,} parameters in all, {coefficients} of them '
      'coefficients of activations.',
      '',
    ]
  )
