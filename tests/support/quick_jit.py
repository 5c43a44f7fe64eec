"""jax.jit for tests: quick to compile, which is nearly all that they cost."""

import functools

import jax
import pytest

jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Has all that a module's tests call compile so; name it there to use it."""
  monkeypatch.setattr(jax, 'jit', jit)
