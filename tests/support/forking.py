"""One fork server for all tests of a process: tools/forked.py has but one."""

import functools
import os
import pathlib
import pkgutil
import tempfile

import forked
import pytest

import t5x_variants

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def _modules():
  """Every module of the package that is no command, and what plots import."""
  found = [*forked.TRAINING, 'matplotlib.figure']
  for module in pkgutil.walk_packages(t5x_variants.__path__, 't5x_variants.'):
    spec = module.module_finder.find_spec(module.name)
    source = pathlib.Path(spec.origin).read_text(encoding='utf-8')
    if "__name__ == '__main__'" not in source and 'torch' not in source:
      found.append(module.name)
  return tuple(found)


@functools.cache
def _cache():
  """The users' cache of all commands; it goes with this process."""
  return tempfile.TemporaryDirectory()


def start(arguments, **options):
  """`forked.start`; with one device, as at home, and not optimised."""
  environment = {
    'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT / 'tests/support'))),
    'XDG_CACHE_HOME': _cache().name,
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    return forked.start(arguments, modules=_modules(), **options)
