"""GLUE, SuperGLUE and SQuAD: files of both kinds, texts, names, rates."""

import importlib.resources.abc
import importlib.util
import itertools
import pathlib
import sys

import benchmark_cases
import benchmark_files
import hypothesis
import pytest
from benchmark_cases import (
  LENGTHS,
  TEXTS,
  benchmark,
  register,
  source,
  subtasks,
  texts,
)
from hypothesis import strategies as st

from t5x_variants import errors
from t5x_variants.cli import gin_utils
from t5x_variants.data import pipeline
from t5x_variants.data.base._tensorflow import seqio, tfds
from t5x_variants.data.benchmarks import recipes
from t5x_variants.data.benchmarks import registry as benchmarks
from t5x_variants.data.tasks import registry as tasks

folder = benchmark_cases.folder


def test_every_task_of_the_papers_is_there():
  known = {name for name, _ in TEXTS}
  assert known == set(benchmarks.RECIPES)
  assert len(benchmarks.GROUPS['glue']) == 9  # MNLI has two development sets.
  assert len(benchmarks.GROUPS['super_glue']) == 8


# Files.


def test_official_files_become_the_texts_of_the_paper(folder):
  for (name, split), wanted in TEXTS.items():
    assert texts(source(name, folder).examples(split)) == wanted, name


def downloaded(name, folder, monkeypatch):
  """Has TFDS's downloads end in the folder of the official files."""
  below = pathlib.Path(folder) / benchmark(name)
  if name == 'squad':
    found = {
      'train': below / 'train-v1.1.json',
      'dev': below / 'dev-v1.1.json',
    }
  elif name == 'glue_mrpc':
    rows = below.joinpath('MRPC/dev.tsv').read_text(encoding='utf-8')
    path = below / 'dev_ids.tsv'
    path.write_text('\t'.join(rows.splitlines()[1].split('\t')[1:3]))
    found = {'dev_ids': path, 'train': below / 'MRPC/train.tsv'}
    found['test'] = found['train']
  else:
    found = str(below)
  for method in ('download', 'download_and_extract'):
    monkeypatch.setattr(
      tfds.download.DownloadManager, method, lambda self, urls: found
    )
  if not importlib.util.find_spec('importlib_resources'):
    # TFDS takes it from packages that no longer bring it along.
    monkeypatch.setitem(sys.modules, 'importlib_resources', importlib.resources)


def prepare(name, data_dir, monkeypatch):
  """Has TFDS's own builder write its folder from what it downloads."""
  builder = tfds.builder(benchmarks.RECIPES[name].tfds, data_dir=data_dir)
  split_generators = builder._split_generators

  def without_tests(dl_manager):  # We read none, and wrote none.
    found = split_generators(dl_manager)
    if isinstance(found, dict):
      return found
    return [split for split in found if not split.name.startswith('test')]

  monkeypatch.setattr(builder, '_split_generators', without_tests)
  builder.download_and_prepare()


@pytest.mark.parametrize('name', benchmarks.RECIPES)
def test_tfds_gives_the_same_texts(name, folder, tmp_path, monkeypatch):
  """TFDS's folder, made by its own builder out of the same official files."""
  downloaded(name, folder, monkeypatch)
  prepare(name, tmp_path, monkeypatch)
  found = source(name, data_dir=str(tmp_path))
  for split in found.splits:
    wanted = TEXTS[name, split]
    if name == 'glue_mrpc':  # TFDS divides one file by a list of numbers.
      wanted = wanted[1:] if split == 'train' else wanted[:1]
    # TFDS stores examples in an order of its own.
    given = texts(found.examples(split))
    assert sorted(map(repr, given)) == sorted(map(repr, wanted))


def test_tfds_downloads_where_it_may(folder, tmp_path, monkeypatch):
  downloaded('squad', folder, monkeypatch)
  words = 'squad/.* is not prepared in .*TFDS_DATA_DIR'
  with pytest.raises(errors.UserError, match=words):
    source('squad', data_dir=str(tmp_path)).examples('train')
  # A folder of its own: seqio keeps what it knows of the first.
  found = source('squad', data_dir=str(tmp_path / 'new'), download=True)
  assert sorted(texts(found.examples('train')), key=repr) == sorted(
    TEXTS['squad', 'train'], key=repr
  )

  def refuse(self, urls):
    raise tfds.download.DownloadError('no way')

  for method in ('download', 'download_and_extract'):
    monkeypatch.setattr(tfds.download.DownloadManager, method, refuse)
  found = source('squad', data_dir=str(tmp_path / 'newer'), download=True)
  with pytest.raises(errors.UserError, match=r"'squad/v1.1:3.0.0': no way"):
    found.examples('train')


@pytest.mark.parametrize(
  ('name', 'broken', 'parts'),
  [
    (
      'glue_cola',
      'x\t2\t\tSo.',
      ["line 3: The label is '2'", '1 (acceptable)'],
    ),
    ('glue_rte', '2\ta\tb\t1', ["line 4: The label is '1'", 'not_entailment']),
    ('glue_rte', '2\ta\tb\t-', ["The label is '-'"]),
    ('glue_stsb', '\t'.join('abcdefghi') + '\t5.1', ["'5.1'", 'from 0 to 5']),
    ('glue_stsb', '\t'.join('abcdefghi') + '\tnan', ['line 6', "'nan'"]),
    (
      'super_glue_cb',
      '{"premise": "a", "hypothesis": "b", "label": "maybe"}',
      ["line 4: The label is 'maybe'", 'contradiction'],
    ),
    ('super_glue_cb', '{"premise": "a", "label": "neutral"}', ['hypothesis']),
    ('super_glue_cb', '{"premise": "a"', ['line 4', 'is no JSON object']),
    ('super_glue_cb', '["a"]', ['line 4', 'is no JSON object']),
    (
      'super_glue_boolq',
      '{"passage": "a", "question": "b", "label": 1}',
      ['line 3: The label is 1', "['False', 'True']"],
    ),
    (
      'super_glue_wsc',
      '{"text": "It is.", "label": true, "target": {"span1_text": "a",'
      ' "span2_text": "he", "span2_index": 0}}',
      ["line 4: The pronoun 'he' is not in the text 'It is.'"],
    ),
    ('super_glue_multirc', '{"idx": 0}', ['line 2', 'no passage of MultiRC']),
    ('super_glue_record', '{"idx": 0}', ['line 2', 'no passage of ReCoRD']),
  ],
)
def test_a_row_that_cannot_be_is_named(tmp_path, name, broken, parts):
  benchmark_files.write(tmp_path)
  file = benchmarks.RECIPES[name].files['validation']
  path = tmp_path / benchmark(name) / file
  with path.open('a', encoding='utf-8') as file:
    file.write(broken + '\n')
  found = source(name, tmp_path)
  assert found.examples('train')
  with pytest.raises(errors.UserError) as caught:
    found.examples('validation')
  for part in (str(path), *parts):
    assert part in str(caught.value)


def test_files_that_are_missing_or_others(tmp_path):
  benchmark_files.write(tmp_path)
  for name in ('MNLI/dev_mismatched.tsv', 'RTE/train.tsv'):
    (tmp_path / 'glue' / name).unlink()
  for name, words in (
    ('mnli', 'no .*MNLI/dev_mismatched.tsv.*looked for'),
    ('glue_rte', r"RTE/train.tsv', 'RTE/dev.tsv"),
  ):
    with pytest.raises(errors.UserError, match=words):
      register(name, tmp_path)
  for name, file, content, words in (
    (
      'glue_qnli',
      'glue/QNLI/dev.tsv',
      b'question\tsentence\nWhy?\tSo.\n',
      "columns.*not .'label'.*headings",
    ),
    ('glue_qnli', 'glue/QNLI/dev.tsv', b'\xff\xfe', 'is no UTF-8'),
    *(
      ('squad', 'squad/dev-v1.1.json', x, 'not in the format of SQuAD')
      for x in (b'{"data": [{}]}', b'[]', b'x')
    ),
    ('glue_cola', 'glue/CoLA/dev.tsv', b'', 'no example of glue_cola'),
  ):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(errors.UserError, match=words):
      source(name, tmp_path).examples('validation')


def test_rows_without_a_label_are_skipped_and_said(folder, caplog):
  source('glue_qqp', folder).examples('train')
  assert 'train.tsv: skipped 1 rows without a label' in caplog.text


# Names, rates, mixtures.


def test_names_with_and_without_their_benchmark():
  assert (
    benchmarks.find('cola') == benchmarks.find('glue_cola') == ['glue_cola']
  )
  mnli = ['glue_mnli_matched', 'glue_mnli_mismatched']
  assert benchmarks.find('mnli') == mnli
  assert benchmarks.find(['squad', 'mnli', 'glue_mnli']) == ['squad', *mnli]
  assert set(benchmarks.find('all')) == set(benchmarks.RECIPES)


def test_slips_of_names_are_refused():
  with pytest.raises(errors.UserError) as caught:
    benchmarks.find('colla')
  for part in ("'colla'", "did you mean 'cola'", *benchmarks.names()):
    assert part in str(caught.value)
  for task, words in (
    ('rte', "'glue_rte', 'super_glue_rte'"),
    *((task, 'TASK is') for task in ([], 'nothing', ['cola', 'wnli'], '')),
  ):
    with pytest.raises(errors.UserError, match=words):
      benchmarks.find(task)
  with pytest.raises(errors.UserError, match='MAXIMUM is 0'):
    benchmarks.rates('glue', 0)


def test_rates_are_those_of_t5():
  """The table of its code, by hand; RTE, of two benchmarks, half in each."""
  glue = [8551, 67349, 3668, 5749, 363849, 392702, 104743]
  super_glue = [9427, 250, 400, 27243, 138854]
  rates = benchmarks.rates('all')
  del rates['glue_mnli_mismatched']  # Of a development set alone.
  assert list(rates.values()) == [
    *glue,
    *[2490 / 2],
    *super_glue,
    *[2490 / 2, 5428, 259, 87599],
  ]
  assert benchmarks.rates('glue')['glue_rte'] == 2490
  assert benchmarks.rates('super_glue')['super_glue_rte'] == 2490
  capped = benchmarks.rates('glue', 100_000)
  assert capped == {k: min(v, 1e5) for k, v in benchmarks.rates('glue').items()}
  assert len([v for v in capped.values() if v == 1e5]) == 3


def test_a_mixture_is_seqio_s(folder):
  name = register(['cola', 'mnli', 'super_glue_wsc', 'squad'], folder)
  mixture = tasks.get(name)
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {
    'glue_cola': 8551,
    'glue_mnli_matched': 392_702,
    'glue_mnli_mismatched': 9832,
    'super_glue_wsc': 259,
    'squad': 87_599,
  }
  assert register(['cola', 'mnli', 'super_glue_wsc', 'squad'], folder) == name
  judged = [x.name for x in subtasks(name) if 'validation' in x.splits]
  assert judged == list(rates)
  trained = [x.name for x in subtasks(name) if 'train' in x.splits]
  assert 'glue_mnli_mismatched' not in trained and len(trained) == 4
  # One pass over it reads every example of every task.
  options = {'shuffle': False, 'seed': 0, 'pack': False, 'num_epochs': 1}
  batches = pipeline.Batches(name, LENGTHS, 'validation', 4, **options)
  rows = sum((x['decoder_target_tokens'] > 0).any(1).sum() for x in batches)
  assert rows == sum(
    len(TEXTS[task.name, 'validation']) for task in mixture.tasks
  )


def test_each_epoch_has_an_order_of_its_own(folder, tmp_path):
  found = source('super_glue_cb', folder)

  def order(seed, epochs=4):
    dataset = found.get_dataset('train', True, seed).repeat(epochs)
    return [x['inputs'] for x in dataset.as_numpy_iterator()]

  assert order(1) == order(1) != order(2)
  epochs = [tuple(order(1)[i : i + 3]) for i in range(0, 12, 3)]
  assert len(set(epochs)) > 1
  assert {tuple(sorted(x)) for x in epochs} == {tuple(sorted(order(2, 1)))}
  # A saved position is small and goes on exactly.
  lengths = dict(zip(('inputs', 'targets'), (40, 16), strict=True))
  name = register('cb', folder)

  def batches():
    return pipeline.Batches(name, lengths, 'train', 2, shuffle=True, seed=3)

  first = batches()
  next(first)
  first.save(tmp_path)
  size = sum(path.stat().st_size for path in tmp_path.iterdir())
  assert size < 1_000_000
  again = batches()
  again.restore(tmp_path)
  for _ in range(3):
    wanted, given = next(first), next(again)
    assert all((wanted[key] == given[key]).all() for key in wanted)


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.integers(1, 300), st.integers(0, 2**31 - 1))
def test_an_order_has_every_place_once(size, seed):
  found = list(recipes._shuffled(size, seed).as_numpy_iterator())
  assert sorted(found) == list(range(size))


def test_shares_of_the_hosts_are_disjoint_and_whole(folder):
  found = source('super_glue_cb', folder)
  shares = [
    [
      example['inputs'].decode()
      for example in found.get_dataset(
        'train', True, 1, seqio.ShardInfo(index, 2)
      ).as_numpy_iterator()
    ]
    for index in range(2)
  ]
  assert [len(share) for share in shares] == [2, 1]
  wanted = [text for text, _ in TEXTS['super_glue_cb', 'train']]
  assert sorted(itertools.chain(*shares)) == sorted(wanted)


# gin.


@pytest.mark.parametrize(
  ('file', 'task', 'wanted'),
  [
    ('glue', "'mrpc'", 'glue_mrpc'),
    ('super_glue', "'super_glue_rte'", 'super_glue_rte'),
    ('squad', None, 'squad'),
    ('benchmarks', "['glue_rte', 'super_glue_rte']", None),
  ],
)
def test_a_gin_file_names_its_task(folder, file, task, wanted):
  values = [
    f'{name.upper()}_DATA={str(folder / name)!r}'
    for name in ('glue', 'super_glue', 'squad')
  ]
  values += [f'TASK={task}'] if task else []
  gin_utils.parse([f'gin/data/{file}.gin'], values)
  name = gin_utils.macro('MIXTURE_OR_TASK_NAME')
  found = [task.name for task in subtasks(name)]
  if wanted:
    assert name in (wanted, f'{wanted}_{name[-8:]}') and len(found) == 1
  else:
    rates = {tasks.get(name).get_rate(x) for x in subtasks(name)}
    assert rates == {1245.0}
