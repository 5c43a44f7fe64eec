"""Values are of their kind, and what is missing is mended as it is said.

Both for every macro of every file below gin/, found mechanically: a new file
or a new macro is tested without a word here.
"""

import functools
import itertools
import re
import typing

import gin
import gin_files
import pytest

from t5x_variants import errors
from t5x_variants.analysis import sweeps
from t5x_variants.cli import gin_hints, gin_utils, gin_values
from t5x_variants.data.prepared import writer
from t5x_variants.inference import evaluation, inference
from t5x_variants.tpu import compiling
from t5x_variants.training import trainer

RUNS = {
  'eval': evaluation.evaluate,
  'infer': inference.infer,
  'score': evaluation.score,
  'precompile': compiling.Plan,
}
FOLDER = gin_utils.gin_folder()
# What a macro may be when gin cannot tell: a name or a record of the table,
# an implementation, a vocabulary. Their users check them.
UNTYPED = {'ACTIVATION', 'FFN_IMPLEMENTATION', 'FFN_SAVE', 'VOCABULARY'}


def function_of(run):
  return RUNS.get(gin_files.stem(run), trainer.train)


def command_of(file):
  """The files and the bindings of the command in a file's head."""
  files, bindings = gin_files.values_of(gin_files.commands(file)[0])
  return list(files), list(bindings)


def read(files, bindings):
  gin.clear_config()
  gin_utils.parse(files, bindings)


def complaint(files, bindings, function):
  """What is said of a configuration; '' when nothing is."""
  # Of one kind there is one file, so that their order does not matter.
  return _complaint(tuple(sorted(files)), tuple(sorted(bindings)), function)


@functools.cache
def _complaint(files, bindings, function):
  try:
    read(files, bindings)
    gin_utils.configured(function)
  except errors.UserError as error:
    return gin_utils.sentence(error)
  return ''


def followed(line, files, bindings):
  """What a suggestion says, done literally: a result for each choice."""
  if found := re.search(
    r'--gin_file=(\S+\.gin)(?: with X one of (\w+(?:, \w+)*))?', line
  ):
    place = re.search(r'in place of (\S+\.gin)', line)
    kept = [file for file in files if not place or file != place[1]]
    for stem in (found[2] or '').split(', '):
      name = found[1].replace('/X.gin', f'/{stem}.gin')
      yield [*kept, name], bindings
  else:
    macro, value = re.search(r'--gin\.(\w+)=(.*)$', line).groups()
    value = value.strip('."').replace('VALUE', '1')
    yield files, [*bindings, f'{macro}={value}']


def subjects(line):
  """The macros that a line of a complaint is about."""
  if found := re.match(r'--gin\.(\w+): no gin file', line):
    return {found[1]}
  names, colon, _ = line.strip().partition(': ')
  return set(names.split(', ')) if colon else {'a run file'}


def lines_of(text):
  """The lines of a complaint that ask for something."""
  if text.startswith('The configuration is not complete'):
    return text.splitlines()[1:]
  return [text] if text else []


def check_cures(text, files, bindings, function, choices=None):
  """Follows every suggestion of a complaint; each does away with its line."""
  for line in lines_of(text):
    for changed in itertools.islice(followed(line, files, bindings), choices):
      after = complaint(*changed, function)
      still = set().union(*map(subjects, lines_of(after)))
      assert not subjects(line) & still, (line, changed, after)
      assert 'exclude each other' not in after, (line, after)


def left_out(run):
  """Each part of a run file's command; what remains without it."""
  files, bindings = command_of(run)
  for place, file in enumerate(files):
    yield file, files[:place] + files[place + 1 :], bindings
  for place, binding in enumerate(bindings):
    yield binding, files, bindings[:place] + bindings[place + 1 :]


LEFT_OUT = [
  pytest.param(run, *rest, id=f'{gin_files.stem(run)} without {part}')
  for run in gin_files.of_kind('runs')
  for part, *rest in left_out(run)
]


@pytest.mark.parametrize('run, files, bindings', LEFT_OUT)
def test_a_cure_that_is_followed_cures(run, files, bindings):
  function = function_of(run)
  text = complaint(files, bindings, function)
  # All choices of a kind once; one of them elsewhere.
  choices = None if gin_files.stem(run) == 'finetune' else 1
  check_cures(text, files, bindings, function, choices)


@pytest.mark.parametrize('run', gin_files.of_kind('runs'))
def test_a_complete_command_has_no_complaint(run):
  assert complaint(*command_of(run), function_of(run)) == ''


@functools.cache
def macros_of_all_files():
  """Every macro that a shipped file sets or asks for."""
  return sorted(
    set(
      re.findall(
        r'^([A-Z][A-Z0-9_]*) = ',
        '\n'.join(
          (gin_files.ROOT / name).read_text(encoding='utf-8')
          for name in gin_hints.files(FOLDER)
        ),
        re.MULTILINE,
      )
    )
  )


@functools.cache
def used_by(*files):
  """The macros that some files use."""
  read(files, [])
  return gin_values.used()


@pytest.mark.parametrize('run', ['pretrain', 'infer'])
def test_a_macro_of_another_file_is_sent_home(run):
  files, _ = command_of(f'gin/runs/{run}.gin')
  sent = 0
  for macro in set(macros_of_all_files()) - used_by(*files):
    text = gin_hints.home(FOLDER, macro, files)
    if text and 'which is for python' not in text:
      for changed, _ in itertools.islice(followed(text, files, []), 2):
        assert macro in used_by(*changed), (macro, text)
        sent += 1
  assert sent > 10


# --- values ---


def kinds_below(function):
  """By macro, the annotation of each parameter it is bound to."""
  known = gin_values.defined()
  found = {}

  def add(value, kind):
    name = gin_values._macro_name(value)
    if name is None:
      for item, item_kind in gin_values._items(value, kind) or ():
        add(item, item_kind)
    elif gin_values._macro_name(known[name]):
      add(known[name], kind)
    else:
      found.setdefault(name, kind)

  for configurable, parameter, value in gin_values.bindings_below(function):
    add(value, gin_values._annotation(configurable.wrapped, parameter))
  return found


@functools.cache
def configurations():
  """By macro: files and bindings that use it, the function, the kind."""
  found = {}
  cases = [
    (*command_of(run), function_of(run)) for run in gin_files.of_kind('runs')
  ]
  finetune = command_of('gin/runs/finetune.gin')
  for data in gin_files.of_kind('data'):
    others = [f for f in finetune[0] if gin_files.kind(f) != 'data']
    bindings = [b for b in finetune[1] if not b.startswith('PAIRS')]
    of_data = command_of(data)[1]
    own = [b for b in of_data if b.split('=')[0] not in str(bindings)]
    cases.append(([*others, data], [*bindings, *own], trainer.train))
  cases += [
    (*command_of(sweep), sweeps.Sweep) for sweep in gin_files.of_kind('sweeps')
  ]
  for files, bindings, function in cases:
    read(files, bindings)
    for macro, kind in kinds_below(function).items():
      found.setdefault(macro, (files, bindings, function, kind))
  gin.clear_config()
  return found


def wrong_values(macro, kind):
  """Values that cannot be meant, as gin reads them."""
  kinds = gin_values.choices(kind)
  numbers = set(kinds) & {int, float}
  if type(None) not in kinds:
    yield 'None'
  if numbers:
    yield from ("'5'", "'five'", 'True', '[1]', "{'a': 1}", '1e999', '-1e999')
    yield '@gin.singleton'
    allowed = gin_values.RANGES[macro]
    for number in ('-1', '0', '1', '2', '3'):
      if not allowed.test(int(number)):
        yield number
  if numbers == {int}:
    yield from ('0.5', '16.0', '1e5', '99999999999')
  elif bool in kinds:
    yield from ("'True'", "'no'", '0', '1', '[]')
  elif str in kinds:
    yield from ('5', '0.5', 'True', "'a\\0b'")
    if macro != 'PREFIX':
      yield "''"
    if not any(typing.get_origin(k) for k in kinds):
      yield "['a']"
  elif not numbers:
    yield from ('5', 'True', '0.5')
  if any(map(gin_values._is_function, kinds)):
    yield from ("'greedy'", '5')


def test_every_macro_is_checked():
  """It reaches a parameter of a known kind, and a number has a range."""
  found = configurations()
  of_users = {'FULL', 'BITFIT', 'GREEDY'}  # To be named by other macros.
  unseen = set(macros_of_all_files()) - set(found) - of_users
  assert not {
    m for m in unseen if not re.match('COEFF.*_AND_|BITFIT_|COEFF.*_FROZEN', m)
  }
  kinds = {
    macro: set(gin_values.choices(k)) for macro, (*_, k) in found.items()
  }
  unknown = {m for m, k in kinds.items() if k & set(gin_values._ANY)}
  assert unknown <= UNTYPED
  numeric = {macro for macro, k in kinds.items() if k & {int, float}}
  assert len(numeric) > 30 and numeric <= set(gin_values.RANGES)


@pytest.mark.parametrize('macro', macros_of_all_files())
def test_a_value_that_cannot_be_meant_is_told_by_the_macro_s_name(macro):
  if macro not in configurations() or macro in UNTYPED:
    return  # See the test before.
  files, bindings, function, kind = configurations()[macro]
  wrong = list(wrong_values(macro, kind))
  text = complaint(files, without(macro, bindings, wrong[-1]), function)
  assert text.startswith(f'{macro} is ') and '\n' not in text, text
  for value in wrong:
    parsed = gin.config.parse_value(value)
    assert not gin_values._fits(parsed, kind, macro), value
    sentence = gin_values._sentence(macro, parsed, kind)
    assert sentence.startswith(f'{macro} is '), sentence
    assert '; it must be ' in sentence and sentence.endswith('.'), sentence
    called = [CALLED[k] for k in gin_values.choices(kind) if k in CALLED]
    assert not called or any(word in sentence for word in called), sentence


CALLED = {int: 'whole number', float: 'a number', bool: 'True or False'}


# Independent of the table of ranges and of what annotations say.
WRONG = """
TRAIN_STEPS -5 0 True None [5]
BATCH_SIZE '16' 0.5 0
NUM_MICROBATCHES 'two' 0
LEARNING_RATE '0.1' -1.0 1e999 None
COEFFICIENT_LEARNING_RATE [1]
COEFFICIENT_WARMUP_FRACTION 2
WARMUP_STEPS 0
DROPOUT_RATE 10 1.0 'none'
Z_LOSS 'no'
LABEL_SMOOTHING 1.5
RANDOM_SEED 1.5 99999999999999999999 -1
LOG_PERIOD 0
EVAL_STEPS 0
KEEP_CHECKPOINTS 0
MODEL_AXIS_SIZE None
GATED 'yes'
MLP_DIM '24'
SCAN_LAYERS 'yes'
FROZEN 5
MODEL_DIR None 7 ''
TEXT_FILES 5 ''
VALIDATION_FRACTION 1.0
INITIAL_CHECKPOINT_PATH 1
INFER_INPUTS 5
SWEEP_DIR 5
"""


@pytest.mark.parametrize('line', WRONG.strip().splitlines())
def test_it_is_no_value(line):
  macro, *values = line.split()
  kind = configurations()[macro][-1]
  for value in map(gin.config.parse_value, values):
    assert not gin_values._fits(value, kind, macro), value


def without(macro, bindings, value):
  """Bindings with another value of a macro."""
  rest = [b for b in bindings if not b.startswith(f'{macro}=')]
  return [*rest, f'{macro}={value}']


def test_a_parameter_without_a_macro_is_checked_too():
  files, bindings = command_of('gin/runs/infer.gin')
  for binding, words in (
    ("network.T5Config.num_heads='2'", "network.T5Config.num_heads is '2'"),
    ('decoding.beam_search.num_decodes=1.0', 'beam_search.num_decodes=1'),
    ("decoding.beam_search.alpha='x'", 'it must be a number'),
  ):
    assert words in complaint(files, [*bindings, binding], inference.infer)


def test_a_list_of_macros_is_checked_item_by_item():
  files, bindings = command_of('gin/runs/infer.gin')
  text = complaint(files, [*bindings, "INPUT_LENGTH='x'"], inference.infer)
  assert text == "INPUT_LENGTH is 'x'; it must be a whole number from 1 up."


def test_a_macro_named_by_a_macro_is_the_one_that_is_told():
  files, bindings = command_of('gin/runs/low_data.gin')
  text = complaint(
    files, without('LOW_DATA_SEED', bindings, "'x'"), trainer.train
  )
  assert text.startswith("LOW_DATA_SEED is 'x'") and '\n' not in text


def test_what_prepares_data_is_checked():
  gin.parse_config(
    'from __gin__ import dynamic_registration\n'
    'from t5x_variants.data.prepared import writer\n'
    "writer.configure.output = ''\n"
    'writer.configure.mixture_or_task_name = 5\n'
    'writer.configure.task_feature_lengths = 512\n'
  )
  text = '\n'.join(gin_values.mistakes(writer.configure))
  assert 'mixture_or_task_name is 5; it must be a string in quotes' in text
  assert 'a dict of whole numbers' in text
