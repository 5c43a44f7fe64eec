"""The formulas of the activation table a second time, in float64 numpy.

Written from the papers, without regard to speed, for complex z and c: the
derivative along d is imag(f(z + ih d)) / h, exact to float64's last digits
for h = 1e-100 since nothing is subtracted. Branches look at the real part, so
a derivative at a kink is the one of the branch that 0 falls in: for |x| that
of x >= 0.
"""

import numpy as np
from scipy import special

STEP = 1e-100


def absolute(x):
  return np.where(np.real(x) < 0, -x, x)


def positive_part(x):
  return np.where(np.real(x) > 0, x, 0.0)


def sigmoid(x):
  s = 1.0 / (1.0 + np.exp(-absolute(x)))
  return np.where(np.real(x) < 0, 1.0 - s, s)


def gelu(z, c):
  return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def gelu_exact(z, c):
  # erf's own derivative, because complex erf overflows far out.
  x = np.real(z)
  slope = np.sqrt(2 / np.pi) * np.exp(-0.5 * x * x)
  erf = special.erf(x / np.sqrt(2)) + 1j * np.imag(z) * slope
  return 0.5 * z * (1 + erf)


def xielu(z, c):
  a_p = np.log1p(np.exp(c['alpha_p'][0]))
  a_n = 0.5 + np.log1p(np.exp(c['alpha_n'][0]))
  p = positive_part(z)
  n = z - p
  return a_p * p**2 + a_n * (np.expm1(n) - n) + 0.5 * z


def rational(version):
  def function(z, c):
    a, b = c['numerator'], c['denominator']
    p = sum(a[i] * z**i for i in range(len(a))) + 0 * z
    if version == 'A':
      y = absolute(z)
      q = 1 + sum(absolute(b[k]) * y ** (k + 1) for k in range(len(b)))
    elif version == 'C':
      q = 0.1 + absolute(sum(b[k] * z**k for k in range(len(b))) + 0 * z)
    else:
      q = 1 + absolute(sum(b[k] * z ** (k + 1) for k in range(len(b))) + 0 * z)
    return p / q

  return function


def polyrelu(z, c):
  r, w = positive_part(z), c['weight']
  return c['bias'][0] + sum(w[k] * r ** (k + 1) for k in range(len(w)))


def polynorm(z, c):
  h, w = c['bias'][0] + 0 * z, c['weight']
  for k in range(len(w)):
    u = z ** (k + 1)
    h = h + w[k] * u / np.sqrt(np.mean(u * u, -1, keepdims=True) + 1e-6)
  return h


TABLE = {
  'relu': lambda z, c: positive_part(z),
  'gelu': gelu,
  'gelu_exact': gelu_exact,
  'swish': lambda z, c: z * sigmoid(z),
  'sigmoid': lambda z, c: sigmoid(z),
  'linear': lambda z, c: z,
  'squared_relu': lambda z, c: positive_part(z) ** 2,
  'xielu': xielu,
  'rational': rational('A'),
  'polyrelu': polyrelu,
  'polynorm': polynorm,
}


def derivatives(function, kind, z, c, cotangent):
  """Returns h, its pull-back to z, and to each coefficient per element."""
  z = np.asarray(z, np.float64)
  c = {k: np.asarray(v, np.float64) for k, v in c.items()}
  c = {k: list(v) for k, v in c.items()}
  g = np.asarray(cotangent, np.float64)
  h = np.real(function(z + 0j, c))
  if kind == 'elementwise':
    dz = g * np.imag(function(z + 1j * STEP, c)) / STEP
  else:
    one = 1j * STEP * np.eye(z.shape[-1])[:, None, :]
    moved = np.imag(function(z + one, c)) / STEP
    dz = np.einsum('jrf,rf->rj', moved, g)
  dc = {}
  for key, values in c.items():
    for k, value in enumerate(values):
      changed = {**c, key: [*values]}
      changed[key][k] = value + 1j * STEP
      dc[key, k] = g * np.imag(function(z + 0j, changed)) / STEP
  return h, dz, dc
