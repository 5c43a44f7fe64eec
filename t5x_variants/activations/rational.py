"""Safe rational (Pade) activations, versions A, B, C and D.

  act(z) = P(z) / Q(z),   P(z) = sum_{i=0..m} a_i z^i

  A   Q = 1 + sum_{k=1..n} |b_k| |z|^k
  B   Q = 1 + |sum_{k=1..n} b_k z^k|
  C   Q = 0.1 + |sum_{k=0..n} b_k z^k|
  D   B, and in training every coefficient is multiplied by its own noise

Molina et al., 'Pade Activation Units', ICLR 2020 (B, and D's noise); Fang et
al., 'Transformers with Learnable Activation Functions', 2022 (RAFT: A with
(m, n) = (5, 4), started from GELU); the versions' letters are those of the
rational_activations package. One set of coefficients serves all tokens and
all channels of a block.

Where a value under |.| is 0, its sign is +1, for z, for b_k and for the sums
of B and C alike: with the field's sign(0) = 0 a denominator that starts at 0,
as the identity's does, would never learn.

Initial coefficients come from one of two named sets:
  'fitted'     our own fits on [-8, 8], written by tools/fit_rational.py. Q
               has even powers only, with coefficients >= 0, so the four
               versions start as the same function and differ in how they
               learn. relu, leaky_relu, gelu and swish are a multiple of z
               plus an even function; the multiple is exact in the fit, and
               the even part levels off far out. So for m = n + 1 the slope
               tends to the same value at both ends (1/2 for GELU): no
               rational function of this form can have slope 1 at one and 0
               at the other. The tool prints how far off the tails are.
  'published'  those of the rational_activations package, release 0.2.0 on
               PyPI, degrees 5/4, fitted on [-3, 3]. B's, C's and D's GELU have
               the wrong sign beyond about 5; A's grows like z^2. A's identity
               is a fit on [-20, 20] with large coefficients that cancel; the
               package's repository has had the exact identity in its place
               since July 2021. For reproduction only.

In float32 value and derivatives stay finite for |z| <= 1e4 with m <= 9 and
n <= 8 (z^m and Q must stay below 3e38).

Shapes: z [..., F] -> [..., F]; numerator [m + 1], denominator [n] (version C
[n + 1]).
"""

import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from t5x_variants import errors
from t5x_variants.activations import registry

_PAPER = (
  'Molina et al. 2020, Pade Activation Units, arXiv:1907.06732; Fang et al. '
  '2022, Transformers with Learnable Activation Functions, arXiv:2208.14111'
)
VERSIONS = ('A', 'B', 'C', 'D')
FUNCTIONS = (
  'gelu',
  'relu',
  'leaky_relu',
  'swish',
  'tanh',
  'sigmoid',
  'identity',
)
SETS = ('fitted', 'published')
DEVIATION = 0.1

Vectors = tuple[tuple[float, ...], tuple[float, ...]]


def rational(
  version: str = 'A',
  degrees: Sequence[int] = (5, 4),
  approximates: str = 'gelu',
  coefficients: str | Sequence[Sequence[float]] = 'fitted',
) -> registry.Activation:
  """A rational activation; equal options give the identical object.

  Args:
    version: 'A', 'B', 'C' or 'D', see the module's text.
    degrees: (m, n), of numerator and denominator.
    approximates: the function it starts as, one of FUNCTIONS.
    coefficients: 'fitted', 'published', or the initial values themselves as
      a pair (numerator, denominator); with a pair `approximates` is unused.

  Returns:
    The activation. Version D's has `perturb`.
  """
  if version not in VERSIONS:
    raise errors.UserError(
      f'There is no rational of version {version!r}; allowed are '
      f'{", ".join(VERSIONS)}.'
    )
  m, n = _checked_degrees(degrees)
  if isinstance(coefficients, str):
    vectors = initial(version, (m, n), approximates, coefficients)
  else:
    vectors = _checked_vectors(coefficients)
    approximates, coefficients = 'given', 'given'
  sizes = (m + 1, n + (version == 'C'))
  if sizes != tuple(map(len, vectors)):
    raise errors.UserError(
      f'A rational of version {version} and degrees {(m, n)} has {sizes[0]} '
      f'numerator and {sizes[1]} denominator coefficients, but was given '
      f'{len(vectors[0])} and {len(vectors[1])}.'
    )
  return _make(version, (m, n), approximates, coefficients, vectors)


def initial(
  version: str, degrees: tuple[int, int], approximates: str, name: str
) -> Vectors:
  """Returns the initial (numerator, denominator) from the set of that name."""
  if approximates not in FUNCTIONS:
    raise errors.UserError(
      f'A rational cannot start as {approximates!r}; allowed are '
      f'{", ".join(FUNCTIONS)}.'
    )
  if name not in SETS:
    raise errors.UserError(
      f'There are no rational coefficients {name!r}; allowed are '
      f'{", ".join(SETS)}, or a pair (numerator, denominator).'
    )
  # The published identity of version A is a fit like any other.
  if approximates == 'identity' and name == 'fitted':
    return _identity(version, degrees)
  form = f'{degrees[0]}/{degrees[1]}'
  if name == 'published':
    form = f'{version} {form}'
  table = load(name)
  if approximates not in table.get(form, {}):
    known = ', '.join(f'{k} {f}' for k in table for f in table[k])
    remedy = (
      "take coefficients 'fitted'"
      if name == 'published'
      else f'run: python tools/fit_rational.py --degrees {form} '
      f'--approximates {approximates}'
    )
    raise errors.UserError(
      f'There are no {name} rational coefficients for {form} {approximates}, '
      f'only for: {known}; {remedy}.'
    )
  row = table[form][approximates]
  numerator, denominator = row['numerator'], row['denominator']
  if name == 'fitted' and version == 'C':
    denominator = [0.9, *denominator]
  return tuple(numerator), tuple(denominator)


def path(name: str) -> pathlib.Path:
  """The file of a named set of coefficients."""
  return pathlib.Path(__file__).with_name(f'rational_{name}.json')


@functools.cache
def load(name: str) -> dict:
  """Reads a named set: form -> function -> numerator and denominator."""
  return json.loads(path(name).read_text())


def _identity(version, degrees):
  m, n = degrees
  if m < 1:
    raise errors.UserError(
      f'A rational of degrees {degrees} cannot start as identity: its '
      'numerator needs degree 1 or more.'
    )
  numerator = tuple(float(i == 1) for i in range(m + 1))
  denominator = (0.0,) * n
  return numerator, (0.9, *denominator) if version == 'C' else denominator


def _checked_degrees(degrees) -> tuple[int, int]:
  try:
    m, n = tuple(degrees)
  except (TypeError, ValueError):
    m = n = None
  for degree in (m, n):
    if type(degree) is not int or degree < 0:
      raise errors.UserError(
        f'The degrees of a rational are {degrees!r}; allowed is a pair (m, n) '
        'of whole numbers from 0 up, such as (5, 4).'
      )
  return m, n


def _checked_vectors(coefficients):
  try:
    numerator, denominator = coefficients
    return tuple(map(float, numerator)), tuple(map(float, denominator))
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'The coefficients of a rational are {coefficients!r}; allowed are '
      f'{", ".join(map(repr, SETS))} or a pair (numerator, denominator) of '
      'lists of numbers.'
    ) from error


@functools.cache
def _make(version, degrees, approximates, coefficients, vectors):
  options = {
    'version': (version, 'A'),
    'degrees': (degrees, (5, 4)),
    'approximates': (approximates, 'gelu'),
    'coefficients': (coefficients, 'fitted'),
  }
  changed = [f'{k}={v}' for k, (v, default) in options.items() if v != default]
  return registry.define(
    f'rational({", ".join(changed)})' if changed else 'rational',
    functools.partial(_rational, version),
    paper=_PAPER,
    initial={'numerator': vectors[0], 'denominator': vectors[1]},
    perturb=perturb if version == 'D' else None,
  )


def perturb(coefficients: registry.Coefficients, key: jax.Array) -> dict:
  """Version D's noise: each coefficient times its own draw from U[0.9, 1.1).

  One draw per coefficient and call, that is per block and training step, for
  all tokens and channels alike. (The package draws anew for every element of
  z in its CUDA kernel, and for the numerator only on a CPU; a draw per call
  keeps the coefficients shared, which is what the kernels rely on.) In
  evaluation it is not called, and D is B.
  """
  names = sorted(coefficients)
  keys = jax.random.split(key, len(names))
  return {
    name: coefficients[name]
    * jax.random.uniform(
      k,
      coefficients[name].shape,
      coefficients[name].dtype,
      1.0 - DEVIATION,
      1.0 + DEVIATION,
    )
    for name, k in zip(names, keys, strict=True)
  }


def _rational(version, z, c):
  p = _polynomial(c['numerator'], z)
  return _divide(p, _denominator(version, c['denominator'], z))


def _denominator(version, b, z):
  if version == 'A':
    y = _absolute(z)
    return 1.0 + y * _polynomial([_absolute(v) for v in b], y)
  if version == 'C':
    return 0.1 + _absolute(_polynomial(b, z))
  return 1.0 + _absolute(z * _polynomial(b, z))


def _polynomial(coefficients, x):
  if not coefficients:
    return jnp.zeros_like(x)
  result = coefficients[-1]
  for coefficient in reversed(coefficients[:-1]):
    result = result * x + coefficient
  return result


def _absolute(x):
  # Not jnp.abs, whose derivative at 0 is 0: here it is +1.
  return jnp.where(x < 0, -x, x)


@jax.custom_jvp
def _divide(p, q):
  return p / q


@_divide.defjvp
def _divide_jvp(primals, tangents):
  # The built-in rule multiplies by q^-2, which float32 rounds to 0 from
  # q = 1e19 on, and divides twice.
  (p, q), (dp, dq) = primals, tangents
  f = p / q
  return f, (dp - f * dq) / q
