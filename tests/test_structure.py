"""The house's rules: which way imports run, and what is where."""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest

import t5x_variants

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 't5x_variants'
# Rooms from the ground up: each may import from the floors below it. The
# commands, which are the modules at the top of the package, stand above all.
FLOORS = [
  {'errors', 'logs', 'chips', 'paths'},
  {'activations', 'data/base', 'distributed'},
  {'kernels', 'data/text'},
  {'model', 'data/tasks'},
  {'run_dir', 'data/benchmarks', 'data/prepared'},
  {'for_t5x', 'weights', 'data'},
  {'training', 'cli'},
  {'inference', 'tpu', 'analysis'},
]
TENSORFLOW = {'tensorflow', 'seqio', 'tensorflow_datasets', 'tensorflow_text'}


def modules():
  return sorted(PACKAGE.rglob('*.py'))


def name_of(path):
  parts = list(path.relative_to(ROOT).with_suffix('').parts)
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


ENTRY_POINTS = {
  path.stem
  for path in PACKAGE.glob('*.py')
  if "__name__ == '__main__'" in path.read_text(encoding='utf-8')
}


def room(name):
  """t5x_variants.model.mlp -> model, t5x_variants.train -> train."""
  _, *parts = name.split('.')
  if parts[:1] == ['data'] and (PACKAGE / '/'.join(parts[:2])).is_dir():
    return '/'.join(parts[:2])
  return parts[0] if parts else ''


@functools.cache
def imported(path):
  """Full names of what a module imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import'
      names = {f'{node.module}.{alias.name}' for alias in node.names}
      known = {name_of(other) for other in modules()}
      found |= {n if n in known else node.module for n in names}
  return found


def edges():
  """Pairs of rooms: who imports, and whom."""
  return {
    (room(name_of(path)), room(name))
    for path in modules()
    for name in imported(path)
    if name.split('.')[0] == 't5x_variants'
  }


def floor(name):
  if name in ENTRY_POINTS:
    return len(FLOORS)
  return next((i for i, names in enumerate(FLOORS) if name in names), None)


def test_imports_run_one_way():
  wrong = []
  for importer, wanted in edges():
    above, below = floor(importer), floor(wanted)
    if importer != wanted and None not in (above, below) and below >= above:
      wrong.append(f'{importer} imports {wanted}')
  assert not wrong


def test_the_plan_is_small():
  """At most 25 rooms, 9 floors and 100 arrows, the commands as one room."""
  rooms = {
    tuple('commands' if r in ENTRY_POINTS else r for r in pair)
    for pair in edges()
  }
  arrows = {(a, b) for a, b in rooms if a != b}
  assert len({r for pair in arrows for r in pair}) <= 25
  assert len(FLOORS) + 1 <= 9
  assert len(arrows) <= 100


def test_every_room_has_a_floor():
  # A new module at the top of the package takes its place in FLOORS.
  rooms = {room(name_of(path)) for path in modules()} - {''}
  assert not {r for r in rooms if floor(r) is None}


def test_data_and_models_stay_strangers():
  for importer, wanted in edges():
    pair = {importer.partition('/')[0], wanted.partition('/')[0]}
    assert pair != {'data', 'model'}


def test_the_top_of_the_package_is_the_list_of_commands():
  at_the_top = {path.stem for path in PACKAGE.glob('*.py')} - ENTRY_POINTS
  assert at_the_top == {
    *('__init__', 'errors', 'logs', 'chips', 'paths', 'for_t5x')
  }


def test_nothing_imports_an_entry_point():
  assert 'train' in ENTRY_POINTS
  assert not [pair for pair in edges() if pair[1] in ENTRY_POINTS]


def test_kernels_and_activations_know_no_model_library():
  for path in modules():
    if room(name_of(path)) in ('activations', 'kernels'):
      roots = {name.split('.')[0] for name in imported(path)}
      assert not roots & {'flax', 'optax', 'gin', 'orbax'}, path


@pytest.mark.parametrize('path', modules(), ids=name_of)
def test_where_gin_and_tensorflow_may_be_imported(path):
  roots = {name.split('.')[0] for name in imported(path)}
  where = room(name_of(path))
  if where not in ENTRY_POINTS | {'cli'}:
    assert 'gin' not in roots
  if where.partition('/')[0] != 'data':
    assert not roots & TENSORFLOW


def test_the_model_and_the_trainer_load_no_tensorflow():
  code = (
    'import sys; import t5x_variants.model.network; '
    'import t5x_variants.training.trainer; import '
    't5x_variants.train; '
    f'print(sorted(set(sys.modules) & {TENSORFLOW}))'
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
    timeout=200,
  )
  assert result.stdout.strip() == '[]'


def test_nothing_below_gin_is_a_python_package():
  assert not list((ROOT / 'gin').rglob('*.py'))


def test_the_wheel_holds_the_gin_tree_and_the_tables(monkeypatch):
  """What setup.py hands to setuptools, without building anything."""
  import setuptools

  seen = {}
  monkeypatch.setattr(
    setuptools, 'setup', lambda **options: seen.update(options)
  )
  monkeypatch.chdir(ROOT)
  source = (ROOT / 'setup.py').read_text(encoding='utf-8')
  readme = 'README.read_text(encoding=' + "'utf-8')"
  assert readme in source
  source = source.replace(readme, "''")  # It may not be written yet.
  exec(compile(source, ROOT / 'setup.py', 'exec'), {'__file__': 'setup.py'})
  assert seen['version'] == t5x_variants.__version__
  packages = {name_of(path.parent / '__init__.py') for path in modules()}
  assert set(seen['packages']) == packages | {'t5x_variants.gin'}
  assert seen['package_dir']['t5x_variants.gin'] == 'gin'

  def shipped(package, folder):
    return {
      path
      for pattern in seen['package_data'].get(package, ())
      for path in folder.glob(pattern)
    }

  tree = shipped('t5x_variants.gin', ROOT / 'gin')
  assert tree == set((ROOT / 'gin').rglob('*.gin')) and tree
  tables = {
    path
    for path in PACKAGE.rglob('*')
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  }
  assert tables <= shipped('t5x_variants', PACKAGE)
  for requirement in seen['install_requires']:
    assert re.match(r'[A-Za-z0-9_-]+(\[\w+\])?>=[\d.]+$', requirement), (
      f'{requirement}: bounds, not pins'
    )


def test_the_citation_is_of_this_version():
  citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  versions = re.findall('^version: (.+)$', citation, re.MULTILINE)
  assert versions == [t5x_variants.__version__]


def test_no_module_is_too_long_to_read():
  long = {
    name_of(path): lines
    for path in modules()
    if (lines := len(path.read_text(encoding='utf-8').splitlines())) > 500
  }
  assert not long


@pytest.mark.parametrize('path', modules(), ids=name_of)
def test_it_says_what_it_is(path):
  assert ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
