"""The feed-forward block: one signature, and which implementation runs it.

  xla               the plain JAX of reference.py: anything, anywhere
  pallas            the TPU kernels
  pallas_interpret  the same kernels, interpreted: for tests, on any device

A named implementation runs or says why it cannot. The one exception is a
function of the hidden activations, dropout, which the kernels never have in
memory: such a call goes to XLA, and the log says so, once.

Without a name CPU and GPU take XLA. A TPU takes it too, but for what TABLE
names: blocks for which the static figures of docs/kernels.md show the kernels
ahead. The rule, which a test applies to that table:

  save='inputs', 'preactivations'   the kernel's modelled cycles are at most
                    MARGIN of XLA's best form that stores as much
  save=None         those of the kernel that stores nothing are at most MARGIN
                    of XLA's best form of all
"""

import functools
import json
import logging
import pathlib
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from t5x_variants import chips, errors
from t5x_variants.kernels import meshes, operands, reference, sharded, tiles

IMPLEMENTATIONS = ('xla', 'pallas', 'pallas_interpret')

MARGIN = 0.95
# With fewer tokens on a device the weights' own transfers, which the figures
# leave out, take more than the margin leaves.
TOKENS = 16384
# (generation, activation, gated, save, D, F on a device), as
# tools/kernels/bench_ffn.py --all wrote them.
TABLE: frozenset[tuple[str, str, bool, str | None, int, int]] = frozenset(
  tuple(row)
  for row in json.loads(
    (pathlib.Path(__file__).parent / 'choices.json').read_text('utf-8')
  )
)

_log = logging.getLogger('t5x_variants')
OnHidden = Callable[[Float[Array, '... F']], Float[Array, '... F']]


def ffn(
  x: Float[Array, '... D'],
  wi: operands.Branches,
  wo: Float[Array, 'F D'],
  coefficients: operands.Coefficients,
  activation,
  gated: bool,
  *,
  save: str | None = None,
  implementation: str | None = None,
  mesh=None,
  on_hidden: OnHidden | None = None,
  constrain: OnHidden | None = None,
) -> Float[Array, '... D']:
  """Applies the feed-forward block.

  Args:
    x: inputs, in the dtype to compute in.
    wi: the input matrix, or the pair (activated branch, linear branch).
    wo: the output matrix.
    coefficients: the activation's learned vectors by name, float32; empty
      for an activation without any.
    activation: a record of the activation table.
    gated: whether a linear branch is multiplied in.
    save: what is stored for the backward pass besides x and the parameters:
      'inputs' nothing, 'preactivations' z and u, 'all' what autodiff keeps.
      None is 'all' for XLA and 'inputs' for the kernels.
    implementation: 'xla', 'pallas', 'pallas_interpret', or None to choose.
    mesh: the mesh of the operands, with the axes `data` and `model`; None
      takes the one of `jax.set_mesh` or of `with mesh:`. XLA needs none.
    on_hidden: changes the hidden activations before `wo`: dropout.
    constrain: constrains how the hidden activations are sharded; nothing to
      the kernels, which never store them.

  Returns:
    The block's output, in the dtype of x.
  """
  branches = operands.check(x, wi, wo, coefficients, activation, gated)
  operands.check_choice('save', save, operands.SAVES)
  operands.check_choice('implementation', implementation, IMPLEMENTATIONS)
  mesh = meshes.current() if mesh is None else mesh
  kind = _device_kind(mesh)
  named = implementation is not None
  if not named:
    implementation = _choice(kind, mesh, activation, gated, save, x, wo)
  if implementation != 'xla':
    save = save or 'inputs'
    block, reason = _block(
      kind, mesh, implementation, activation, gated, save, x, wo
    )
    if reason is None and on_hidden is None:
      return sharded.ffn(block, x, branches, wo, coefficients)
    if reason is not None and named:
      raise errors.UserError(
        f'implementation={implementation!r} cannot run this block: {reason} '
        "'xla' can."
      )
    _say_once(
      f'The feed-forward block runs as XLA, not as {implementation}: '
      + (reason or 'the kernels have no dropout of the hidden activations.')
    )
  return reference.ffn(
    x,
    wi,
    wo,
    coefficients,
    activation,
    gated,
    save=save or 'all',
    on_hidden=_compose(on_hidden, constrain),
  )


def _choice(kind, mesh, activation, gated, save, x, wo) -> str:
  chip = chips.CHIPS.get(kind)
  if chip is None:
    return 'xla'
  ways = dict(mesh.shape)
  tokens, d = x.size // x.shape[-1], x.shape[-1]
  f = wo.shape[0] // ways.get(sharded.MODEL, 1)
  row = (chip.name, activation.name, gated, save, d, f)
  enough = tokens // ways.get(sharded.DATA, 1) >= TOKENS
  return 'pallas' if enough and row in TABLE else 'xla'


def _block(kind, mesh, implementation, activation, gated, save, x, wo):
  """The kernels' block, and why it cannot be; one of the two is None."""
  interpret = implementation == 'pallas_interpret'
  chip = tiles.INTERPRETED if interpret else chips.CHIPS.get(kind)
  if chip is None:
    return None, (
      f'it needs a TPU of {", ".join(chips.CHIPS)}, and this is {kind!r}.'
    )
  mesh = None if mesh.empty or mesh.size == 1 else mesh
  block = sharded.Block(activation, gated, save, chip, mesh, interpret)
  reason = sharded.why_not(block, x, wo)
  return (block, None) if reason is None else (None, reason)


def _device_kind(mesh) -> str:
  """What the program is for: the mesh's devices, or this process's."""
  device = getattr(mesh, 'abstract_mesh', mesh).abstract_device
  if device is not None:
    return device.device_kind
  return jax.devices()[0].device_kind


def _compose(first, second):
  if first is None or second is None:
    return first or second
  return lambda hidden: second(first(hidden))


@functools.cache
def _say_once(sentence: str) -> None:
  _log.warning(sentence)
