"""The record of one activation, and the table of all of them.

An activation is a pure function h = act(z; c) of a pre-activation z and of a
(possibly empty) dict c of coefficient vectors, with the values these start
from and the paper it is from. Flax parameters, kernels, derivatives, generic
tests and plots are derived from this record, so that adding an activation is
one function and one row:

  def hard_tanh(z, c):
    return c['scale'][0] * jnp.clip(z, -1.0, 1.0)

  activations.register(
    activations.define(
      'hard_tanh', hard_tanh, paper='...', initial={'scale': [1.0]}
    )
  )

Shapes: z [..., F], each coefficient vector [K]; the result has z's shape.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5x_variants import errors

Coefficients = Mapping[str, Any]
KINDS = ('elementwise', 'rowwise')


@dataclasses.dataclass(frozen=True)
class Activation:
  """One activation: what it computes, where it starts, where it is from.

  Compared and hashed by its fields, so it may be a static argument of a
  jitted function and a field of a Flax module.

  Attributes:
    name: how gin files and tables call it.
    fn: (z, coefficients) -> h, of z's shape and dtype; computes in float32
      (in float64 when z is float64) and casts once. A coefficient may be a
      vector [K], or a list of K scalars or of K arrays that broadcast with z.
    init: () -> the initial coefficients, float32 vectors by name.
    kind: 'elementwise', or 'rowwise' when fn reduces over z's last axis.
    paper: a citation.
    perturb: None, or (coefficients, key) -> coefficients with the noise this
      activation is trained with; never called in evaluation.
  """

  name: str
  fn: Callable[[Float[Array, '...'], Coefficients], Float[Array, '...']]
  init: Callable[[], dict[str, np.ndarray]]
  kind: str
  paper: str
  perturb: Callable[[Coefficients, Array], dict[str, Array]] | None = None


def define(
  name: str,
  formula: Callable,
  *,
  paper: str,
  kind: str = 'elementwise',
  initial: Mapping[str, Sequence[float]] | None = None,
  perturb: Callable | None = None,
) -> Activation:
  """Makes an Activation of a formula that knows nothing of dtypes.

  Args:
    name: how gin files and tables call it.
    formula: (z, c) -> h in plain JAX. It is given z in the dtype to compute
      in, and each coefficient vector as a list of scalars (or of arrays that
      broadcast with z) of that dtype. Its derivative is what autodiff makes
      of it; write `where` for abs and sign to choose the one at a kink.
    paper: a citation.
    kind: 'elementwise' or 'rowwise'.
    initial: the initial values of each coefficient vector.
    perturb: the noise it is trained with, see `Activation`.

  Returns:
    The activation, not yet in the table.
  """
  if kind not in KINDS:
    raise errors.UserError(
      f'The activation {name!r} has kind {kind!r}; allowed are '
      f'{", ".join(KINDS)}.'
    )
  initial = {
    key: tuple(float(value) for value in values)
    for key, values in (initial or {}).items()
  }
  sizes = {key: len(values) for key, values in initial.items()}

  def fn(z, coefficients):
    given = {key: len(values) for key, values in coefficients.items()}
    if given != sizes:
      raise errors.UserError(
        f'The activation {name!r} has coefficients of lengths {sizes}, but was '
        f'given {given}; start from its init().'
      )
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    c = {
      # Only static indices: a kernel passes a list of tiles for a vector.
      key: [jnp.asarray(values[k], dtype) for k in range(sizes[key])]
      for key, values in coefficients.items()
    }
    return formula(z.astype(dtype), c).astype(z.dtype)

  def init():
    return {k: np.asarray(v, np.float32) for k, v in initial.items()}

  return Activation(name, fn, init, kind, paper, perturb)


_TABLE: dict[str, Activation] = {}


def register(activation: Activation) -> Activation:
  """Adds an activation to the table; its name must be new."""
  if not isinstance(activation, Activation):
    raise errors.UserError(
      f'The function register takes an Activation, not {activation!r}; make '
      'one with activations.define(name, formula, paper=...).'
    )
  if activation.kind not in KINDS:
    raise errors.UserError(
      f'The activation {activation.name!r} has kind {activation.kind!r}; '
      f'allowed are {", ".join(KINDS)}.'
    )
  if activation.name in _TABLE:
    raise errors.UserError(
      f'The activation {activation.name!r} is registered already; choose '
      'another name.'
    )
  _TABLE[activation.name] = activation
  return activation


def names() -> tuple[str, ...]:
  """The names of all registered activations, in the table's order."""
  return tuple(_TABLE)


def get(name: str | Activation) -> Activation:
  """Returns the activation of that name; an Activation is returned as is."""
  if isinstance(name, Activation):
    return name
  if isinstance(name, str) and name in _TABLE:
    return _TABLE[name]
  close = difflib.get_close_matches(str(name), names(), n=1)
  hint = f' (did you mean {close[0]!r}?)' if close else ''
  raise errors.UserError(
    f'There is no activation {name!r}{hint}; allowed are '
    f'{", ".join(names())}, or an Activation.'
  )
