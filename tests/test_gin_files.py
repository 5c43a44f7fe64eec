"""One suite over every file below gin/."""

import functools
import importlib.util
import pathlib
import re
import shlex

import gin
import pytest

from t5x_variants import activations, gin_utils, train_state

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  str(file.relative_to(ROOT)) for file in (ROOT / 'gin').rglob('*.gin')
)
OTHERS = {
  'models': 'gin/models/tiny.gin',
  'variants': 'gin/variants/relu.gin',
  'data': 'gin/data/embedded.gin',
  'runs': 'gin/runs/pretrain.gin',
}
FLAG = re.compile(r'--(gin_file|gin_search_paths|gin_bindings|dry_run|gin\.)')


def kind(file):
  return pathlib.PurePath(file).parent.name


def of_kind(name):
  return [file for file in FILES if kind(file) == name]


def stem(file):
  return pathlib.PurePath(file).stem


def stems(name):
  return [stem(file) for file in of_kind(name)]


def head(file):
  """The comment a file opens with, without the number signs."""
  lines = []
  for line in (ROOT / file).read_text(encoding='utf-8').splitlines():
    if not line.startswith('#'):
      break
    lines.append(line.removeprefix('#').removeprefix(' '))
  return '\n'.join(lines)


def commands(file):
  """The commands in a file's head, each as a list of arguments."""
  text = re.sub(r'\\\n\s*', ' ', head(file))
  return [shlex.split(found) for found in re.findall(r'python3? -m .*', text)]


def for_t5x(file):
  return any(c[2].split('.')[0] == 't5x' for c in commands(file))


def parse(*files, bindings=()):
  gin_utils.parse([str(file) for file in files], bindings)


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
    assert importlib.util.find_spec(words[2]) or for_t5x(file), words[2]
    named = [
      word.removeprefix('--gin_file=')
      for word in words
      if word.startswith('--gin_file=')
    ]
    assert file in named, f'the command does not name {file}'
    assert not [name for name in named if not (ROOT / name).is_file()]
    for word in words[3:]:
      assert FLAG.match(word) or not word.startswith('-') or for_t5x(file), word


@pytest.mark.parametrize('file', FILES)
def test_its_commands_are_complete(file):
  """With the files and values of its own command, nothing is missing."""
  if for_t5x(file):
    pytest.importorskip('t5x', reason='google-research/t5x is not installed')
  for words in commands(file):
    arguments = gin_utils.rewrite_arguments(words[3:])
    values = {
      flag: [
        word.removeprefix(f'--{flag}=')
        for word in arguments
        if word.startswith(f'--{flag}=')
      ]
      for flag in ('gin_file', 'gin_bindings')
    }
    parse(
      *(ROOT / name for name in values['gin_file']),
      bindings=values['gin_bindings'],
    )
    assert gin_utils.missing_macros() == []


@pytest.mark.parametrize('file', FILES)
def test_it_parses_with_the_other_axes(file):
  if for_t5x(file):
    pytest.importorskip('t5x', reason='google-research/t5x is not installed')
  files = OTHERS | {kind(file): file}
  # A file of another axis comes last: it may override them all.
  order = [*OTHERS, *(k for k in files if k not in OTHERS)]
  parse(*(files[k] for k in order))
  missing = gin_utils.missing_macros()
  text = ''.join((ROOT / f).read_text(encoding='utf-8') for f in files.values())
  for macro in missing:
    assert re.search(rf'^{macro} = %gin.REQUIRED', text, re.MULTILINE), (
      f'{macro} is used, has no value and is not said to be required'
    )


@pytest.mark.parametrize('file', of_kind('variants'))
def test_a_variant_is_a_block_and_nothing_else(file):
  parse(file)
  defined, used = gin_utils._macros()
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


@functools.cache
def shapes(model, variant):
  """Shapes of the parameters; tracing costs a fifth of a second."""
  gin.clear_config()
  parse(f'gin/models/{model}.gin', f'gin/variants/{variant}.gin')
  parse(bindings=['DROPOUT_RATE=0.0'])
  found, _ = train_state.shapes_and_axes(gin_utils.macro('MODEL'))
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
  assert train_state.count(found) == total
  block = found['encoder']['layers']['mlp']
  assert block['wi_0']['kernel'].shape[-1] == width
  assert block['wo']['kernel'].shape[-2] == width


@pytest.mark.parametrize('model', stems('models'))
def test_all_variants_have_as_many_parameters(model):
  plain = train_state.count(shapes(model, 'relu'))
  for variant in stems('variants'):
    count = train_state.count(shapes(model, variant))
    assert abs(count / plain - 1) <= 0.005, (variant, count, plain)


@pytest.mark.parametrize('model', stems('models'))
def test_a_vocabulary_size_suits_a_mesh(model):
  vocab, width = shapes(model, 'relu')['token_embedder']['embedding'].shape
  assert vocab % 128 == 0 and width % 64 == 0
