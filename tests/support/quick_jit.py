"""jax.jit for tests: quick to compile, which is nearly all that they cost."""

import functools

import jax

jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
