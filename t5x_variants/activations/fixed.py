"""The formulas without coefficients, and xIELU.

  relu          max(z, 0)
  gelu          z Phi(z), Phi by its tanh form (the form of T5 1.1)
  gelu_exact    z Phi(z), Phi by erf
  swish         z sigmoid(z)
  sigmoid       1 / (1 + exp(-z))
  linear        z
  squared_relu  max(z, 0)^2
  xielu         a_p z^2 + b z              where z > 0
                a_n (e^z - 1 - z) + b z    elsewhere, with b = 1/2,
                a_p = softplus(alpha_p[0]), a_n = b + softplus(alpha_n[0])

With a gate, relu is ReGLU, gelu GEGLU, swish SwiGLU, sigmoid GLU, and linear
Bilinear. The derivative of relu at 0 is 0. The papers stand in the table, in
`activations/__init__.py`.

Shapes: z [..., F] -> [..., F], all elementwise.
"""

import math

import jax
import jax.numpy as jnp


def relu(z, c):
  """Returns max(z, 0), and NaN for NaN."""
  del c
  return jnp.where(z <= 0, 0.0, z)


def gelu(z, c):
  """Returns z Phi(z) in the tanh form.

  (1 + tanh(u)) / 2 = 1 / (1 + e^(-2u)), whose derivative keeps its digits
  where tanh is close to 1: there 1 - tanh(u)^2 is multiplied by z^3.
  """
  del c
  v = 2.0 * math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z)
  # Below, the value is 0 in float32 and e^-v would overflow.
  v = jnp.where(v < -88.0, -88.0, v)
  return z / (1.0 + jnp.exp(-v))


def gelu_exact(z, c):
  """Returns z Phi(z)."""
  del c
  # erf and not erfc, which TPU kernels cannot compute.
  return 0.5 * z * (1.0 + jax.lax.erf(z * math.sqrt(0.5)))


def swish(z, c):
  """Returns z sigmoid(z)."""
  del c
  return z * jax.lax.logistic(z)


def sigmoid(z, c):
  """Returns 1 / (1 + exp(-z))."""
  del c
  return jax.lax.logistic(z)


def linear(z, c):
  """Returns z."""
  del c
  return z


def squared_relu(z, c):
  """Returns max(z, 0)^2."""
  r = relu(z, c)
  return r * r


XIELU_B = 0.5
# softplus of these gives a_p = 0.8 and a_n - b = 0.3: both a start at 0.8.
XIELU_INITIAL = {
  'alpha_p': [math.log(math.expm1(0.8))],
  'alpha_n': [math.log(math.expm1(0.8 - XIELU_B))],
}


def xielu(z, c):
  """Returns xIELU, continuous with its first derivative at 0.

  The published code takes e^min(z, -1e-6), whose derivative at 0 is off by
  a_n; here the two halves are kept apart by `where`, at most 1e-6 away.
  """
  a_p = jax.nn.softplus(c['alpha_p'][0])
  a_n = XIELU_B + jax.nn.softplus(c['alpha_n'][0])
  p = jnp.where(z > 0, z, 0.0)
  n = jnp.where(z > 0, 0.0, z)
  # e^n - 1 without cancellation near 0, of what TPU kernels can compute.
  t = jnp.tanh(0.5 * n)
  expm1 = 2.0 * t / (1.0 - t)
  return a_p * p * p + a_n * (expm1 - n) + XIELU_B * z
