"""The house's rules: which way imports run, and what is where."""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 't5x_variants'
# Rooms from the ground up: each may import what stands before it, and
# itself. `errors` is the ground.
FLOORS = [
  {'errors', 'checksums'},
  {'activations'},
  {'kernels'},
  {'mlp', 'layers'},
  {'attention'},
  {'stacks'},
  {'network'},
  {'losses', 'schedules', 'optimizer', 'partitioning', 'data'}
  | {'flops', 'collectives', 'topologies', 'membership', 'remote'}
  | {'checkpoints', 'preemption', 'metrics', 'decoding', 'gin_hints', 'logs'}
  | {'command_line', 'gin_values', 'host_flags', 'forked'},
  {'train_state', 'gin_utils', 'runs', 'throughput', 'profiling', 'sweeps'}
  | {'hosts', 'changes', 'run_lock'}
  | {'selection', 'task_metrics'},
  {'train_step', 'weights'},
  {'programs'},
  {'training_loop'},
  {
    'trainer',
    'importing',
    'exporting',
    'for_t5x',
    'inference',
    'evaluation',
    'compiling',
  },
  {'fitting'},
  {'slice_report', 'slice_table'},
]
# On one floor, but they do not know each other.
STRANGERS = {'data', 'optimizer', 'partitioning', 'checkpoints'}
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
  """t5x_variants.data.tasks.registry -> data."""
  parts = name.split('.')
  return parts[1] if len(parts) > 1 else ''


@functools.cache
def imported(path):
  """Full names of what a module imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import'
      if node.module == 't5x_variants':
        found |= {f't5x_variants.{alias.name}' for alias in node.names}
      else:
        found.add(node.module)
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
    if importer == wanted or None in (above, below):
      continue
    if below > above:
      wrong.append(f'{importer} imports {wanted}')
  assert not wrong


def test_no_two_rooms_import_each_other():
  known = edges()
  assert not [
    pair for pair in known if pair[0] != pair[1] and pair[::-1] in known
  ]


def test_every_room_has_a_floor():
  # A new module at the top of the package takes its place in FLOORS.
  rooms = {room(name_of(path)) for path in modules()} - {''}
  assert not {r for r in rooms if floor(r) is None}


def test_strangers_stay_strangers():
  assert not [(a, b) for a, b in edges() if a != b and {a, b} <= STRANGERS]


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
  if where not in ENTRY_POINTS | {'gin_utils', 'gin_hints', 'gin_values'}:
    assert 'gin' not in roots
  if where != 'data':
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
