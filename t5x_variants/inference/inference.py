"""Texts into a trained model, texts or scores out: a file in, a file out.

Inputs are the lines of a text file, the objects of a JSON lines file with
`inputs` (and `targets`, to score), or the examples of a task's split, whose
targets come out with the answers. Outputs are JSON lines in the order of the
inputs, one for each:

  predict   {"inputs": ..., "predictions": [{"text": ..., "log_probability": p},
             ...]}, best first
  score     {"inputs": ..., "targets": ..., "log_probability": p}

in nats, summed over tokens, EOS included. The rules for odd inputs: what is
longer than `input_length` is cut at its end and marked `"cut": true`; an empty
line is an input like any other; a line that is no UTF-8 is refused before
anything is computed, with its number.

An output is written batch by batch. Stopped and started again, it goes on
where it was, if inputs and settings are the same: these stand beside it in
`OUTPUT.gin`.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn

from t5x_variants import errors, logs
from t5x_variants.data import config as data_config
from t5x_variants.distributed import partitioning
from t5x_variants.inference import load
from t5x_variants.model import decoding, network
from t5x_variants.training import programs

MODES = ('predict', 'score')


@dataclasses.dataclass(frozen=True)
class Request:
  """One input, and what is to be scored after it.

  Attributes:
    inputs: text.
    targets: text; None where none is known.
    ids: token ids by 'inputs' and 'targets', EOS included, where a task has
      made them.
  """

  inputs: str
  targets: str | None = None
  ids: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def infer(
  model: network.Transformer,
  *,
  checkpoint: str,
  vocabulary,
  inputs: str | None,
  output: str | None,
  mode: str,
  decoder: Callable[..., decoding.Decodes],
  input_length: int,
  decode_length: int,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  logical_axis_rules: partitioning.Rules,
  dataset: data_config.DatasetConfig | None = None,
  random_seed: int = 0,
  settings: str = '',
) -> None:
  """Answers every input.

  Args:
    model: the network.
    checkpoint: its weights, see `inference.load.load`.
    vocabulary: of seqio; the one that the model was trained with.
    inputs: a file of text (.txt, a line an input) or of JSON lines (.jsonl);
      None asks at the terminal.
    output: the file of JSON lines to write; None writes to standard output.
    mode: 'predict' or 'score'.
    decoder: `decoding.beam_search`, `greedy` or `sample`.
    input_length: tokens of an input at most, EOS included.
    decode_length: tokens of an output at most, EOS included.
    batch_size: inputs at a time.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    dataset: a task's split in place of `inputs`, unless its task is None; its
      own vocabulary is taken.
    random_seed: of samples.
    settings: text that an output to go on with must have been made with.

  Raises:
    errors.UserError: wrong input, or an output that cannot be written.
  """
  if dataset is not None and dataset.mixture_or_task_name is None:
    dataset = None
  _check(mode, inputs, dataset, output, input_length, decode_length)
  partitioning.check_batch(batch_size, mesh)
  requests = None if inputs is None else read_requests(inputs, mode)
  if dataset is not None:
    vocabulary, requests = _of_task(dataset)
  with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axis_rules):
    answer = functools.partial(
      _answers,
      _compiled(model, mode, decoder, decode_length, vocabulary.eos_id),
      load.load(model, checkpoint, mesh, logical_axis_rules)[1],
      vocabulary,
      (input_length, decode_length),
      batch_size,
      mesh,
      mode,
    )
    key = jax.random.key(random_seed)
    if requests is None:
      _converse(answer, key)
    elif output is None:
      for record in answer(key, requests):
        print(json.dumps(record, ensure_ascii=False), flush=True)
    else:
      answer = functools.partial(answer, key, requests)
      _write(answer, requests, pathlib.Path(output), batch_size, settings)


def _check(mode, inputs, dataset, output, input_length, decode_length) -> None:
  if mode not in MODES:
    raise errors.UserError(
      f'INFER_MODE is {mode!r}: use one of {", ".join(map(repr, MODES))}.'
    )
  if None not in (inputs, dataset):
    raise errors.UserError(
      f'INFER_INPUTS is {inputs} and INFER_TASK is '
      f'{dataset.mixture_or_task_name}: give one of them.'
    )
  asked = inputs is None and dataset is None
  if asked and (mode == 'score' or output is not None):
    raise errors.UserError(
      'INFER_INPUTS is None, which asks at the terminal: that is for '
      "INFER_MODE 'predict' without INFER_OUTPUT. Give a file of inputs, or "
      'INFER_TASK.'
    )
  errors.check_positive('INPUT_LENGTH', input_length)
  errors.check_positive('DECODE_LENGTH', decode_length)


def _of_task(dataset: data_config.DatasetConfig):
  """The vocabulary and the requests of a split, task after task."""
  tasks = dataset.examples()
  requests = [
    Request(inputs, targets, {'inputs': input_ids, 'targets': target_ids})
    for task in tasks
    for inputs, targets, input_ids, target_ids in zip(
      task.inputs, task.targets, task.input_ids, task.target_ids, strict=True
    )
  ]
  return tasks[0].vocabulary, requests


def read_requests(path: str, mode: str = 'predict') -> list[Request]:
  """The inputs of a text file or of a JSON lines file.

  Raises:
    errors.UserError: it cannot be read, or a line of it is not an input; the
      line's number is named.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_bytes().splitlines()
  except OSError as error:
    raise errors.UserError(
      f'INFER_INPUTS {path} cannot be read: {errors.reason(error)}.'
    ) from error
  is_json = path.endswith('.jsonl')
  found: list[Request] = []
  for number, line in enumerate(lines, 1):
    try:
      text = line.decode('utf-8')
      found.append(
        _request(json.loads(text), mode) if is_json else Request(text)
      )
    except UnicodeDecodeError as error:
      raise errors.UserError(
        f'{path}, line {number} is no UTF-8 (byte {error.start + 1}): convert '
        'the file, or remove the line.'
      ) from error
    except (json.JSONDecodeError, TypeError) as error:
      fields = '"inputs"' + ('' if mode == 'predict' else ' and "targets"')
      raise errors.UserError(
        f'{path}, line {number} is not an input: a line of a .jsonl file is an '
        f'object with {fields}, which are strings.'
      ) from error
  if not is_json and mode == 'score':
    raise errors.UserError(
      f"INFER_INPUTS is {path}: INFER_MODE 'score' needs targets, so give a "
      '.jsonl file with "inputs" and "targets".'
    )
  if not found:
    raise errors.UserError(f'INFER_INPUTS {path} is empty: there is no input.')
  return found


def _request(value, mode: str) -> Request:
  names = ('inputs',) if mode == 'predict' else ('inputs', 'targets')
  if not isinstance(value, dict) or not all(
    isinstance(value.get(name), str) for name in names
  ):
    raise TypeError
  return Request(*(value[name] for name in names))


def _compiled(model, mode, decoder, length, eos_id) -> Callable:
  if mode == 'score':
    return jax.jit(functools.partial(decoding.log_probabilities, model))
  return programs.decode(model, decoder, length, eos_id)


def _answers(
  compute,
  params,
  vocabulary,
  lengths,
  batch_size,
  mesh,
  mode,
  key,
  requests: Sequence[Request],
  first: int = 0,
) -> Iterator[dict]:
  """Records of the requests from number `first` on, a multiple of a batch."""
  for start in range(first, len(requests), batch_size):
    part = requests[start : start + batch_size]
    records, inputs = _encoded(vocabulary, part, 'inputs', lengths[0])
    rest = jax.random.fold_in(key, start)
    if mode == 'score':
      scored, rest = _encoded(vocabulary, part, 'targets', lengths[1])
      records = [a | b for a, b in zip(records, scored, strict=True)]
      rest = _filled(rest, batch_size, mesh)
    found = jax.device_get(
      compute(params, _filled(inputs, batch_size, mesh), rest)
    )
    if mode == 'score':
      for record, log_probability in zip(records, found, strict=False):
        yield record | {'log_probability': float(log_probability)}
      continue
    for record, request in zip(records, part, strict=True):
      if request.targets is not None:
        record['targets'] = request.targets
    for record, tokens, log_probabilities in zip(records, *found, strict=False):
      answers = [
        {'text': _decoded(vocabulary, row), 'log_probability': float(p)}
        for row, p in zip(tokens, log_probabilities, strict=True)
      ]
      yield record | {'predictions': answers}


def _encoded(vocabulary, part, name: str, length: int):
  """The records begun, and rows of ids, of one side of some requests."""
  # TensorFlow comes with it, which training from prepared data does without.
  from t5x_variants.data.text import texts

  records, rows = [], []
  for request in part:
    text = getattr(request, name)
    ids = texts.encode(vocabulary, text)
    records.append({name: text} | ({'cut': True} if len(ids) >= length else {}))
    row = texts.padded(ids, length, vocabulary.eos_id)
    if name in request.ids:
      # A task may have made other tokens of its text.
      ids = request.ids[name]
      row = np.pad(ids, (0, length - len(ids))).astype(np.int32)
    rows.append(row)
  return records, np.stack(rows)


def _decoded(vocabulary, row: np.ndarray) -> str:
  from t5x_variants.data.text import texts

  return texts.decode(vocabulary, row)


def _filled(rows: np.ndarray, batch_size: int, mesh):
  """A whole batch of rows, on the devices: one program for all."""
  missing = batch_size - len(rows)
  whole = np.pad(rows, [(0, missing), (0, 0)], mode='edge')
  return partitioning.global_batch({'rows': whole}, mesh)['rows']


def _converse(answer, key) -> None:
  """Answers each line of the terminal."""
  logs.say('A line is an input; <extra_id_0> is a gap. End with Ctrl-D.')
  for number, line in enumerate(sys.stdin):
    request = Request(line.rstrip('\n'))
    (record,) = answer(jax.random.fold_in(key, number), [request])
    for found in record['predictions']:
      print(f'{found["log_probability"]:9.2f}  {found["text"]}', flush=True)


def _write(answer, requests, output, batch_size: int, settings: str) -> None:
  """Writes the records that `output` does not have yet."""
  begun = time.perf_counter()
  try:
    done = _resume(output, requests, batch_size, settings)
    if done:
      logs.say(f'{output} has {done} of {len(requests)} inputs already.')
    with output.open('a', encoding='utf-8') as file:
      records = answer(done)
      while batch := list(itertools.islice(records, batch_size)):
        lines = [json.dumps(r, ensure_ascii=False) + '\n' for r in batch]
        file.write(''.join(lines))
        file.flush()
        done += len(batch)
        logs.say(
          f'{done}/{len(requests)} inputs, {time.perf_counter() - begun:.0f} s'
        )
  except OSError as error:
    raise errors.UserError(
      f'INFER_OUTPUT {output} cannot be written: {errors.reason(error)}. '
      'What is in it is kept; the same command goes on from there.'
    ) from error


def _resume(output, requests, batch_size: int, settings: str) -> int:
  """Cuts an output back to whole batches; how many inputs it has.

  Raises:
    errors.UserError: it is of other inputs or other settings.
  """
  beside = output.with_name(f'{output.name}.gin')
  if not output.exists():
    output.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(settings, encoding='utf-8')
    return 0
  before = ''
  with contextlib.suppress(OSError):
    before = beside.read_text(encoding='utf-8')
  if before != settings:
    raise errors.UserError(
      f'INFER_OUTPUT {output} was written with other settings, which stand in '
      f'{beside}: give another INFER_OUTPUT, or remove both.'
    )
  lines = output.read_bytes().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith(b'\n')]
  if len(whole) < len(requests):
    whole = whole[: len(whole) // batch_size * batch_size]
  same = len(whole) <= len(requests) and all(
    json.loads(line)['inputs'] == request.inputs
    for line, request in zip(whole, requests, strict=False)
  )
  if not same:
    raise errors.UserError(
      f'INFER_OUTPUT {output} holds the outputs of other inputs: give another '
      'file, or remove it.'
    )
  with output.open('r+b') as file:
    file.truncate(sum(map(len, whole)))
  return len(whole)
