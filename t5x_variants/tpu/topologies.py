"""TPU slices by the names users know, and the TPU compiler for them.

A name is a generation and a number, 'v5e-256'. What the number counts is the
vendor's habit: chips for v5e and v6e, TensorCores, two a chip, for v4, v5p and
7x. A v4 or v5p chip is one JAX device all the same, a 7x chip is two.

libtpu compiles for slices that are elsewhere, on any Linux machine with a CPU.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from t5x_variants import chips, errors


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice: its name, generation, and chips along each axis, '4x4x8'."""

  name: str
  generation: str
  shape: str

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(map(int, self.shape.split('x')))


def _slices() -> dict[str, Slice]:
  found = {}
  for generation, of in chips.GENERATIONS.items():
    for shape in of.shapes:
      one = Slice('', generation, shape)
      name = f'{generation}-{one.chips * of.counted}'
      found[name] = dataclasses.replace(one, name=name)
  return found


SLICES = _slices()


def named(name: str) -> Slice:
  """The slice of a name: 'v5e-256', 'v5litepod-256', 'tpu7x-8'.

  Raises:
    errors.UserError: there is none; lists those there are.
  """
  kind, _, number = str(name).lower().rpartition('-')
  for generation, of in chips.GENERATIONS.items():
    if kind in of.aliases:
      kind = generation
  found = SLICES.get(f'{kind}-{number}')
  if found is None:
    known = '; '.join(
      ', '.join(s for s in SLICES if s.startswith(f'{generation}-'))
      for generation in chips.GENERATIONS
    )
    near = difflib.get_close_matches(str(name), SLICES, n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise errors.UserError(
      f'--topology={name} is no TPU slice that is known here.{hint} The number '
      'counts chips of v5e and v6e, and TensorCores, two a chip, of v4, v5p '
      f'and 7x: {known}.'
    )
  return found


def devices(of: Slice) -> Sequence[jax.Device]:
  """The devices of a slice, to compile for; none of them is touched.

  Raises:
    errors.UserError: the TPU compiler is not installed, or does not start.
  """
  if not os.environ.get('TPU_LIBRARY_PATH') and (
    importlib.util.find_spec('libtpu') is None
  ):
    raise errors.UserError(
      'The TPU compiler, libtpu, is not installed (it needs no TPU): '
      "pip install 't5x-variants[tpu]', or pip install 'jax[tpu]'."
    )
  # Read when libtpu is loaded, which is now. Without the last one a second
  # process that compiles is aborted.
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  options: dict[str, Any] = {}
  if of.generation == 'v4':
    options['chip_config_name'] = 'megacore'  # a chip is one device
  if of.chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  compiler = chips.GENERATIONS[of.generation].compiler
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=f'{compiler}:{of.shape}', **options
    ).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    line = re.sub(r'\s+', ' ', str(error))[:200]
    raise errors.UserError(
      f'libtpu does not know the slice {of.name} ({compiler}:{of.shape}): '
      f"{line}. A newer one may: pip install -U 'jax[tpu]'."
    ) from error
