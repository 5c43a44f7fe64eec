"""One suite over every file below gin/."""

import functools
import importlib.util
import inspect
import pathlib
import re
import sys

import gin
import pytest
from gin_files import (
  FILES,
  ROOT,
  commands,
  for_t5x,
  head,
  kind,
  of_kind,
  parse,
  stem,
  stems,
  values_of,
)

from t5x_variants import activations
from t5x_variants.analysis import sweeps
from t5x_variants.cli import gin_utils, gin_values
from t5x_variants.model import parameters
from t5x_variants.tpu import topologies

# These come first: gin/t5x takes the place of gin/runs.
OTHERS = {
  'models': 'gin/models/tiny.gin',
  'variants': 'gin/variants/relu.gin',
  'data': 'gin/data/embedded.gin',
  'runs': 'gin/runs/pretrain.gin',
}
FLAG = re.compile(
  r'--(gin_file|gin_search_paths|gin_bindings|dry_run|topology|processes'
  r'|gin\.)'
)


def test_the_tree_has_gin_files_and_nothing_else():
  # With an __init__.py, `import gin` here would find this folder.
  others = [
    str(path.relative_to(ROOT))
    for path in (ROOT / 'gin').rglob('*')
    if path.is_file() and path.suffix != '.gin'
  ]
  assert not others


@pytest.mark.parametrize('file', FILES)
def test_it_opens_like_a_lab_notebook(file):
  text = head(file)
  first = text.splitlines()[0] if text else ''
  assert re.match(r'\w.{8,}[.:,]', first), 'no line that says what it is'
  assert re.search(r'\b(Papers?|Sources?):', text), 'no paper and no source'
  assert commands(file), 'no command'
  assert re.search(r'\b(Cost|Result|Cost and result):', text), 'no result'
  assert max(map(len, text.splitlines())) <= 90, 'a long line'


@pytest.mark.parametrize('file', FILES)
def test_its_commands_can_be_pasted(file):
  for words in commands(file):
    assert for_t5x(file) or importlib.util.find_spec(words[2]), words[2]
    named = [
      word.removeprefix('--gin_file=')
      for word in words
      if word.startswith('--gin_file=')
    ]
    assert file in named, f'the command does not name {file}'
    assert not [
      name
      for name in named
      if not (ROOT / name).is_file() and not name.startswith('t5x/')
    ]
    for word in words[3:]:
      assert FLAG.match(word) or not word.startswith('-') or for_t5x(file), word


@pytest.fixture
def parse_for(t5x_module, monkeypatch):
  """Reads gin files as the launcher of a command does."""

  def parse_for(module, *files, bindings=()):
    if module.split('.')[0] == 't5x':
      # What t5x's run files import as __main__.
      monkeypatch.setitem(sys.modules, '__main__', t5x_module(module))
      folder = pathlib.Path(t5x_module('t5x').__file__).parents[2]
      gin.add_config_file_search_path(str(folder))
    parse(*files, bindings=bindings)

  return parse_for


@pytest.mark.filterwarnings('ignore:.*:DeprecationWarning')
@pytest.mark.parametrize('file', FILES)
def test_its_commands_are_complete(file, parse_for):
  """With the files and values of its own command, nothing is missing."""
  for words in commands(file):
    files, bindings = values_of(words)
    if any(name.startswith('t5x/examples') for name in files):
      # gin cannot tell t5x's `network` from ours once it has met both, as it
      # may have in this process: tests/t5x/test_t5x_runs.py starts another.
      continue
    parse_for(
      words[2],
      *(ROOT / name if (ROOT / name).exists() else name for name in files),
      bindings=bindings,
    )
    assert gin_values.missing() == []


@pytest.mark.filterwarnings('ignore:.*:DeprecationWarning')
@pytest.mark.parametrize('file', FILES)
def test_it_parses_with_the_other_axes(file, parse_for):
  if file == 'gin/t5x/activations.gin':
    return  # For t5x's own network: tests/t5x/test_t5x_runs.py.
  others = {
    k: v for k, v in OTHERS.items() if not (k == 'runs' and for_t5x(file))
  }
  files = others | {kind(file): file}
  # A file of another axis comes last: it may override them all.
  order = [*others, *(k for k in files if k not in others)]
  parse_for(commands(file)[0][2], *(files[k] for k in order))
  missing = gin_values.missing()
  text = ''.join((ROOT / f).read_text(encoding='utf-8') for f in files.values())
  for macro in missing:
    # What a file of gin/t5x needs besides, its head says.
    assert re.search(rf'^{macro} = %gin.REQUIRED', text, re.MULTILINE) or (
      for_t5x(file) and f'--gin.{macro}=' in head(file)
    ), f'{macro} is used, has no value and is not said to be required'


@pytest.mark.parametrize('file', of_kind('sweeps'))
def test_every_command_of_a_sweep_is_complete(file):
  """One run of each task and stage; runs of others differ in the variant."""
  parse(file)
  sweep = gin_utils.configured(sweeps.Sweep)()
  runs = {
    run.name.rpartition('/')[0]: run for run in sweeps.plan(sweep, ROOT / 'gin')
  }
  assert runs
  for run in runs.values():
    files, bindings = values_of(['python', '-m', '', *run.arguments])
    gin.clear_config()
    parse(*(ROOT / name for name in files), bindings=bindings)
    assert gin_values.missing() == []


def names_in(file, seen=()):
  """Macros that a file and those it includes set, and those they use."""
  text = (ROOT / file).read_text(encoding='utf-8')
  text = re.sub(r'#.*', '', text)
  defined = set(re.findall(r'^([A-Z][A-Z0-9_]*) = (?!%gin)', text, re.M))
  used = set(re.findall(r'%([A-Z][A-Z0-9_]*)', text))
  for other in re.findall(r"^include '(.*)'", text, re.M):
    assert (ROOT / other).is_file(), f'{file} includes {other}'
    more = names_in(other)
    defined, used = defined | more[0], used | more[1]
  return defined, used


@pytest.mark.parametrize('file', of_kind('t5x'))
def test_what_t5x_reads_is_complete_without_t5x(file):
  """Word by word, where t5x is not there to read it with."""
  text = (ROOT / file).read_text(encoding='utf-8')
  modules = set(re.findall(r'^import (\w+)$', text, re.M))
  modules |= set(re.findall(r'^import \w+ as (\w+)$', text, re.M))
  modules |= set(re.findall(r'^from \S+ import (?:\w+ as )?(\w+)', text, re.M))
  body = re.sub(r'#.*|^(from|import|include) .*', '', text, flags=re.M)
  body = re.sub(r"'[^']*'", '', body)
  named = set(re.findall(r'(?:@|/|^)([a-z_]\w*)\.\w', body, re.M))
  assert named <= modules | {'gin'}, 'imports are not inherited by include'
  assert modules - {'dynamic_registration'} <= named, 'an import too many'
  for word in re.findall(r'^from (t5x_variants\S*) import (\w+)', text, re.M):
    assert importlib.util.find_spec('.'.join(word)), word
  for words in commands(file):
    files, bindings = values_of(words)
    known = {binding.partition('=')[0] for binding in bindings}
    needed = set()
    for name in files:
      if name.startswith('t5x/'):
        continue
      defined, used = names_in(name)
      known, needed = known | defined, needed | used
    assert needed <= known, needed - known


@pytest.mark.parametrize(
  'module, stem',
  [
    ('for_t5x', 'for_t5x'),
    ('data.tasks.registry', 'tasks'),
    ('training.schedules', 'schedules'),
  ],
)
def test_what_t5x_s_files_bind_is_there(module, stem):
  """Functions of ours, and their parameters."""
  found = importlib.import_module(f't5x_variants.{module}')
  count = 0
  for file in of_kind('t5x'):
    text = re.sub(r'#.*', '', (ROOT / file).read_text(encoding='utf-8'))
    text = re.sub(r'\n  (?=\w+ = )', '\n>', text)
    for name, block in re.findall(
      rf'^(?:\w+/)?{stem}\.(\w+):\n((?:>.*\n)+)', text, re.M
    ):
      parameters = inspect.signature(getattr(found, name)).parameters
      for parameter in re.findall(r'^>(\w+) =', block, re.M):
        assert parameter in parameters, (file, name, parameter)
        count += 1
    for name, parameter in re.findall(
      rf'^(?:\w+/)?{stem}\.(\w+)\.(\w+) =', text, re.M
    ):
      assert parameter in inspect.signature(getattr(found, name)).parameters
      count += 1
  assert count


@pytest.mark.parametrize('file', of_kind('variants'))
def test_a_variant_is_a_block_and_nothing_else(file):
  parse(file)
  defined, used = gin_values.defined(), gin_values.used()
  assert set(defined) == {'ACTIVATION', 'GATED'} and not used
  assert gin_utils.macro('GATED') in (True, False)
  activation = activations.get(gin_utils.macro('ACTIVATION'))
  assert activation.name in activations.names()
  assert len((ROOT / file).read_text(encoding='utf-8').splitlines()) <= 30


def test_every_activation_of_the_papers_has_a_variant():
  """The GLU paper's table is complete, gated and not."""
  found = {}
  for file in of_kind('variants'):
    gin.clear_config()
    parse(file)
    activation = activations.get(gin_utils.macro('ACTIVATION'))
    found[activation.name, gin_utils.macro('GATED')] = stem(file)
  for name in ('relu', 'gelu', 'swish', 'rational', 'polyrelu', 'polynorm'):
    assert (name, False) in found
  for name in ('sigmoid', 'linear', 'relu', 'gelu', 'swish', 'rational'):
    assert (name, True) in found
  assert found['gelu', True] == 'geglu' and found['swish', True] == 'swiglu'
  assert len(found) == len(of_kind('variants')), 'two files, one variant'


@pytest.mark.parametrize('run', ['pretrain', 'precompile'])
@pytest.mark.parametrize('first', [True, False])
def test_a_slice_s_file_wins_wherever_it_stands(run, first):
  slice_s, rest = 'gin/tpu/v4-512.gin', f'gin/runs/{run}.gin'
  order = [slice_s, rest] if first else [rest, slice_s]
  parse('gin/models/t5_1_1_base.gin', *order, bindings=['BATCH_SIZE = 64'])
  for name, value in (
    ('MODEL_AXIS_SIZE', 4),
    ('DATA_AXIS_SIZE', 64),
    ('REMAT_POLICY', 'full'),
    ('BATCH_SIZE', 64),
  ):
    assert gin_utils.macro(name) == value


@pytest.mark.parametrize('file', of_kind('tpu'))
def test_a_slice_s_file_is_of_its_slice(file):
  """Its mesh is the slice's size, and its batch divides over it."""
  of = topologies.named(stem(file))
  parse(file)
  devices = of.chips * (2 if of.generation == '7x' else 1)
  sizes = [gin_utils.macro(f'{axis}_AXIS_SIZE') for axis in ('DATA', 'MODEL')]
  assert sizes[0] * sizes[1] == devices
  rows = gin_utils.macro('BATCH_SIZE')
  assert rows % (sizes[0] * gin_utils.macro('NUM_MICROBATCHES')) == 0
  assert gin_utils.macro('SCAN_LAYERS') is True
  # The heads of every model for which the file is.
  assert 12 % sizes[1] == 0 and 64 % sizes[1] == 0
  assert f'--topology={of.name} ' in head(file)


@functools.cache
def shapes(model, variant):
  """Shapes of the parameters; tracing costs a fifth of a second."""
  gin.clear_config()
  parse(f'gin/models/{model}.gin', f'gin/variants/{variant}.gin')
  parse(bindings=['DROPOUT_RATE=0.0'])
  found, _ = parameters.shapes_and_axes(gin_utils.macro('MODEL'))
  return found


PUBLIC = {
  't5_1_1_small': (76_961_152, 1024),
  't5_1_1_base': (247_577_856, 2048),
  't5_1_1_large': (783_150_080, 2816),
  't5_1_1_xl': (2_849_757_184, 5120),
  't5_1_1_xxl': (11_135_332_352, 10_240),
  'byt5_small': (299_637_760, 3584),
}


@pytest.mark.parametrize('model', PUBLIC)
def test_public_models_have_their_public_size(model):
  total, width = PUBLIC[model]
  found = shapes(model, 'geglu')
  assert parameters.count(found) == total
  block = found['encoder']['layers']['mlp']
  assert block['wi_0']['kernel'].shape[-1] == width
  assert block['wo']['kernel'].shape[-2] == width


def test_the_glu_paper_s_model_is_t5_1_0():
  """Tied to the embedding: the size of the public T5 Base."""
  found = shapes('t5_1_0_base', 'relu')
  assert parameters.count(found) == 222_903_552
  assert 'logits_dense' not in found['decoder']
  untied = shapes('t5_1_1_base', 'relu')
  assert parameters.count(untied) - parameters.count(found) == 768 * 32_128


def test_the_glu_paper_s_sweep_has_its_sizes():
  parse('gin/sweeps/glu.gin')
  sweep = gin_utils.configured(sweeps.Sweep)()
  runs = sweeps.plan(sweep, ROOT / 'gin')
  assert len(runs) == 8 * (4 + 1 + 1)
  wanted = {'short': 65_536, 'long': 524_288, 'finetune': 131_072}
  for stage, steps in wanted.items():
    run = next(run for run in runs if run.name.startswith(stage))
    files, bindings = values_of(['python', '-m', '', *run.arguments])
    gin.clear_config()
    parse(*(ROOT / name for name in files), bindings=bindings)
    assert gin_utils.macro('TRAIN_STEPS') == steps
    assert gin_utils.macro('BATCH_SIZE') == 128
    lengths = gin_utils.macro('TASK_FEATURE_LENGTHS')
    assert lengths == {'inputs': 512, 'targets': 114}
    assert gin_utils.macro('DROPOUT_RATE') == (stage == 'finetune') * 0.1
    model = gin_utils.macro('MODEL')
    assert model.config.logits_via_embedding


@pytest.mark.parametrize('model', stems('models'))
def test_all_variants_have_as_many_parameters(model):
  """All of them on one model; elsewhere those that differ in shapes."""
  plain = parameters.count(shapes(model, 'relu'))
  differ = ('swiglu', 'rational_glu')
  for variant in stems('variants') if model == 'tiny' else differ:
    count = parameters.count(shapes(model, variant))
    assert abs(count / plain - 1) <= 0.005, (variant, count, plain)


@pytest.mark.parametrize('model', stems('models'))
def test_a_vocabulary_size_suits_a_mesh(model):
  vocab, width = shapes(model, 'relu')['token_embedder']['embedding'].shape
  assert vocab % 128 == 0 and width % 64 == 0
