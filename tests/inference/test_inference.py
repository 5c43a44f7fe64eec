"""Inference: files in, files out, resumed, and odd inputs by stated rules."""

import functools
import json

import hypothesis
import jax
import numpy as np
import pytest
import quick_jit
from hypothesis import strategies
from inference_cases import model
from small_run import mesh_of

from t5x_variants import errors
from t5x_variants.data.text import texts, vocabularies
from t5x_variants.distributed import partitioning
from t5x_variants.inference import inference
from t5x_variants.model import decoding, parameters
from t5x_variants.weights import saved

quick = quick_jit.quick
VOCABULARY = vocabularies.byte()
LINES = ['Thank you <extra_id_0> me', '', 'naïve ☃', 'x' * 60, 'last']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'run'
  shapes, _ = parameters.shapes_and_axes(model())
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes
  )
  saved.write(folder, 7, params, "ACTIVATION = 'rational'\nGATED = True\n")
  return folder, params


def run(checkpoint, inputs, output=None, mode='predict', **options):
  defaults = {
    'decoder': functools.partial(decoding.beam_search, num_decodes=2),
    'input_length': 40,
    'decode_length': 6,
    'batch_size': 2,
    'mesh': mesh_of(1),
  }
  inference.infer(
    model(),
    checkpoint=str(checkpoint[0]),
    vocabulary=VOCABULARY,
    inputs=None if inputs is None else str(inputs),
    output=None if output is None else str(output),
    mode=mode,
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
    **defaults | options,
  )


def records(path):
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


@pytest.fixture
def questions(tmp_path):
  path = tmp_path / 'questions.txt'
  path.write_text(''.join(line + '\n' for line in LINES), encoding='utf-8')
  return path


@hypothesis.given(strategies.text().filter(lambda text: '<extra' not in text))
def test_texts_survive_their_tokens(text):
  text = text.encode('utf-8', 'ignore').decode('utf-8')
  ids = texts.encode(VOCABULARY, text)
  assert texts.decode(VOCABULARY, [*ids, VOCABULARY.eos_id, 70]) == text
  assert texts.decode(VOCABULARY, ids) == text


def test_sentinels_are_the_last_ids_and_are_written_out():
  text = 'a<extra_id_0>b<extra_id_99>'
  ids = texts.encode(VOCABULARY, text)
  assert ids == [ord('a') + 3, 358, ord('b') + 3, 259]
  assert texts.decode(VOCABULARY, ids) == text
  with pytest.raises(errors.UserError, match='100 sentinels'):
    texts.encode(VOCABULARY, '<extra_id_100>')


def test_bytes_that_make_no_character_are_seen():
  assert texts.decode(VOCABULARY, [0xFF + 3, ord('a') + 3]) == '\ufffda'


def test_answers_are_the_decodes_in_the_order_of_the_inputs(
  checkpoint, questions, tmp_path
):
  run(checkpoint, questions, tmp_path / 'out.jsonl')
  found = records(tmp_path / 'out.jsonl')
  assert [record['inputs'] for record in found] == LINES
  assert [bool(record.get('cut')) for record in found] == [
    len(texts.encode(VOCABULARY, line)) >= 40 for line in LINES
  ]
  rows = np.stack(
    [texts.padded(texts.encode(VOCABULARY, line), 40, 1) for line in LINES]
  )
  decode = functools.partial(
    decoding.beam_search, model(), length=6, eos_id=1, num_decodes=2
  )
  tokens, log_prob = jax.jit(decode)(checkpoint[1], rows)
  for record, row, expected in zip(found, tokens, log_prob, strict=True):
    predictions = record['predictions']
    assert [p['text'] for p in predictions] == [
      texts.decode(VOCABULARY, ids) for ids in row
    ]
    np.testing.assert_allclose(
      [p['log_probability'] for p in predictions], expected, rtol=1e-4
    )


@pytest.mark.parametrize('decoder', [decoding.beam_search, decoding.sample])
def test_stopped_anywhere_and_started_again(
  decoder, checkpoint, questions, tmp_path
):
  output = tmp_path / 'out.jsonl'
  run(checkpoint, questions, output, decoder=decoder)
  whole = output.read_bytes()
  ends = np.cumsum([len(line) for line in whole.splitlines(keepends=True)])
  for end in (5, ends[2] + 9, len(whole)):
    output.write_bytes(whole[:end])
    run(checkpoint, questions, output, decoder=decoder)
    assert output.read_bytes() == whole


def test_outputs_of_other_inputs_or_settings_are_kept(
  checkpoint, questions, tmp_path
):
  output = tmp_path / 'out.jsonl'
  run(checkpoint, questions, output, settings='a = 1')
  before = output.read_bytes()
  with pytest.raises(errors.UserError, match='other settings'):
    run(checkpoint, questions, output, settings='a = 2')
  questions.write_text('another\nquestion\n')
  with pytest.raises(errors.UserError, match='other inputs'):
    run(checkpoint, questions, output, settings='a = 1')
  assert output.read_bytes() == before


def test_scores_are_those_of_the_model(checkpoint, tmp_path):
  pairs = [('a', 'bc'), ('de', ''), ('', 'fgh')]
  path = tmp_path / 'pairs.jsonl'
  lines = [json.dumps({'inputs': a, 'targets': b}) + '\n' for a, b in pairs]
  path.write_text(''.join(lines))
  run(checkpoint, path, tmp_path / 'out.jsonl', mode='score')
  inputs, targets = (
    np.stack(
      [
        texts.padded(texts.encode(VOCABULARY, pair[side]), length, 1)
        for pair in pairs
      ]
    )
    for side, length in ((0, 40), (1, 6))
  )
  score = jax.jit(functools.partial(decoding.log_probabilities, model()))
  expected = score(checkpoint[1], inputs, targets)
  found = records(tmp_path / 'out.jsonl')
  assert [(r['inputs'], r['targets']) for r in found] == pairs
  np.testing.assert_allclose(
    [r['log_probability'] for r in found], expected, rtol=1e-4
  )


def test_a_mesh_gives_the_same_answers(checkpoint, questions, tmp_path):
  found = []
  for name, mesh in (('one', mesh_of(1)), ('eight', mesh_of(4, 2))):
    run(checkpoint, questions, tmp_path / name, mesh=mesh, batch_size=4)
    answers = [r['predictions'] for r in records(tmp_path / name)]
    found.append([[p['text'] for p in each] for each in answers])
  assert found[0] == found[1]


def test_at_the_terminal(checkpoint, monkeypatch, capsys):
  monkeypatch.setattr('sys.stdin', iter(['one\n', 'two\n']))
  run(checkpoint, None, decoder=decoding.greedy, batch_size=1)
  assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
  ('name', 'data', 'mode', 'message'),
  [
    ('a.txt', b'fine\nbad \xff\n', 'predict', 'line 2 is no UTF-8'),
    ('a.txt', b'', 'predict', 'empty'),
    ('a.txt', b'x', 'score', 'needs targets'),
    ('a.jsonl', b'{"inputs": "x"}\n{', 'predict', 'line 2 is not an input'),
    ('a.jsonl', b'{"inputs": "x"}', 'score', '"targets"'),
    ('a.jsonl', b'[1]', 'predict', 'line 1 is not an input'),
    ('none.txt', None, 'predict', 'cannot be read'),
    ('a.txt', b'x', 'ask', "'predict', 'score'"),
  ],
)
def test_bad_input_is_refused(checkpoint, tmp_path, name, data, mode, message):
  path = tmp_path / name
  if data is not None:
    path.write_bytes(data)
  output = tmp_path / 'out.jsonl'
  with pytest.raises(errors.UserError, match=message):
    run(checkpoint, path, output, mode=mode)
  assert not output.exists()
