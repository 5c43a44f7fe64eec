"""A checkpoint's parameters on the devices of a mesh, for use as they are."""

from collections.abc import Mapping

import jax

from t5x_variants import errors
from t5x_variants.distributed import partitioning
from t5x_variants.model import network, parameters
from t5x_variants.weights import matching, saved


def load(
  model: network.Transformer,
  checkpoint: str,
  mesh: jax.sharding.Mesh,
  logical_axis_rules: partitioning.Rules,
) -> tuple[int, Mapping]:
  """Reads all of a model's parameters.

  Args:
    model: the network.
    checkpoint: a run directory, one of its checkpoints, or an import; see
      `saved.open_checkpoint`.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.

  Returns:
    The checkpoint's step, and the parameters.

  Raises:
    errors.UserError: no checkpoint, one of another model or variant, or more
      than one process: each would read and hold the whole of it.
  """
  if jax.process_count() > 1:
    raise errors.UserError(
      f'There are {jax.process_count()} processes; only training runs in '
      'several. Start this on one host.'
    )
  shapes, axes = parameters.shapes_and_axes(model)
  found = saved.open_checkpoint(checkpoint)
  asked = matching.variant_of(model.config)
  if None not in (found.variant, asked) and found.variant != asked:
    # Several variants have the same parameters.
    raise errors.UserError(
      f'The folder {found.where} is a checkpoint of {found.variant}, and '
      f'{asked} was asked for: give the variant file (gin/variants/) it was '
      'made with.'
    )
  params = matching.exact(
    found, shapes, 'Give the model and variant files it was made with.'
  )
  shardings = partitioning.param_shardings(
    shapes, axes, mesh, logical_axis_rules
  )
  return found.step, jax.device_put(params, shardings)
