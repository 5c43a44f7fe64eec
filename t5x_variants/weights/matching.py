"""Which of a checkpoint's weights are a model's: all of them, or what fits.

`exact` is what an import wants. `partial` is a warm start from another
variant, on request: another variant differs in the feed-forward block and
nowhere else, so what stands outside of `mlp` must fit or the checkpoint is of
another model.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from flax import traverse_util

from t5x_variants import errors
from t5x_variants.weights import saved, source

_COEFFICIENTS = '/mlp/activation/'


def variant_of(config) -> str | None:
  """The name of a model's block, as `saved.variant_of` gives it."""
  block = config.feed_forward
  name, _, options = block.activation.name.partition('(')
  settings = {'ACTIVATION': name, 'GATED': str(block.gated)}
  version = re.search(r'version=(\w)', options)
  if version:
    settings['rational.rational.version'] = repr(version[1])
  return saved.variant_of(settings)


@dataclasses.dataclass(frozen=True)
class InitialWeightsConfig:
  """The weights that a new run starts from.

  The run begins at step 0 with a fresh optimizer state; one that goes on from
  a checkpoint of its own does not read them.

  Attributes:
    path: see `saved.open_checkpoint`; None initialises all parameters.
    partial: whether they may be of another variant; what fits is taken.
  """

  path: str | None = None
  partial: bool = False

  def read(
    self, config, shapes: Mapping
  ) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """What a run takes, by name, and lines for the log; see `initial`.

    Args:
      config: the model's `network.T5Config`.
      shapes: the model's tree of shapes.
    """
    if self.path is None:
      return {}, []
    return initial(
      saved.open_checkpoint(self.path), shapes, variant_of(config), self.partial
    )


def exact(found: source.Source, params: Mapping, suggestion: str) -> Mapping:
  """The model's parameters, every one from the checkpoint.

  Args:
    found: the checkpoint.
    params: the model's tree of shapes.
    suggestion: what to do when they differ, for the message.

  Returns:
    The same tree with float32 numpy arrays.

  Raises:
    errors.UserError: names and shapes differ, or a value cannot be read.
  """
  check(found, params, suggestion)
  values = found.values()
  return traverse_util.unflatten_dict(
    {
      name: source.leaf(values, name, shape)
      for name, shape in shapes_of(params).items()
    },
    sep='/',
  )


def check(found: source.Source, params: Mapping, suggestion: str) -> None:
  """The part of `exact` that reads no values."""
  lines = source.differences(
    source.unrolled_shapes(found.shapes),
    source.unrolled_shapes(shapes_of(params)),
  )
  if lines:
    raise errors.UserError(
      f'The folder {found.where} is not a checkpoint of this model; '
      + '\n'.join([*lines, suggestion])
    )


def initial(
  found: source.Source,
  params: Mapping,
  variant: str | None,
  allow_partial: bool,
) -> tuple[dict[str, np.ndarray], list[str]]:
  """What a new run takes from a checkpoint.

  Args:
    found: the checkpoint.
    params: the new model's tree of shapes.
    variant: the new model's variant, see `variant_of`.
    allow_partial: whether a checkpoint of another variant is welcome.

  Returns:
    The model's parameters that are taken, float32 numpy by name, and lines
    for the log.

  Raises:
    errors.UserError: it is of another size; or of another variant and that
      was not asked for.
  """
  wanted = shapes_of(params)
  have = source.unrolled_shapes(found.shapes)
  need = source.unrolled_shapes(wanted)
  outside = source.differences(_outside(have), _outside(need))
  if outside:
    raise errors.UserError(
      f'The folder {found.where} is a checkpoint of another model than this '
      'run; '
      + '\n'.join(
        [*outside, 'Use the model file (gin/models/) it was made with.']
      )
    )
  other = None not in (found.variant, variant) and found.variant != variant
  if not allow_partial and (other or have != need):
    raise errors.UserError(_not_asked_for(found, variant, other, have, need))
  fits = {
    name
    for name in have.keys() & need.keys()
    if have[name] == need[name]
    # Coefficients of one function mean nothing to another.
    and not (other and _COEFFICIENTS in name)
  }
  values = found.values()
  taken = {
    name: source.leaf(values, name, shape)
    for name, shape in wanted.items()
    if fits.issuperset(source.layer_names(name, shape))
  }
  lines = [
    f'Starting from the weights of {found.where} (step {found.step}): '
    f'{len(taken)} of {len(wanted)} parameters taken.'
  ]
  fresh = need.keys() - fits
  left = have.keys() - fits
  if fresh:
    lines.append(f'Initialised afresh: {_listed(fresh)}.')
  if left:
    lines.append(f'Left in the checkpoint: {_listed(left)}.')
  return taken, lines


def _not_asked_for(found, variant, other, have, need) -> str:
  what = 'is a checkpoint of another variant than this run'
  if other:
    what = f'is a checkpoint of {found.variant}, this run is {variant}'
  lines = source.differences(have, need) or [
    'the parameters have the same shapes, but the block is another function.'
  ]
  return f'The folder {found.where} {what}; ' + '\n'.join(
    [
      *lines,
      'Use the variant file (gin/variants/) it was made with; or, to take the '
      'weights that fit and initialise the rest, add '
      '--gin.INITIAL_CHECKPOINT_PARTIAL=True.',
    ]
  )


def shapes_of(params: Mapping) -> dict[str, source.Shape]:
  """Shapes by name of a tree of parameters."""
  flat = traverse_util.flatten_dict(params, sep='/')
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _outside(shapes: Mapping) -> dict:
  return {name: shape for name, shape in shapes.items() if '/mlp/' not in name}


def _listed(names: Iterable[str]) -> str:
  """The names, with the layers of a stack as one."""
  return ', '.join(
    sorted({re.sub(r'layers_\d+', 'layers_*', n) for n in names})
  )
