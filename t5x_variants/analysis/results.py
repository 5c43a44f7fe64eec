"""What runs reached: their directories, their records, their best numbers."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from t5x_variants import errors, logs
from t5x_variants.run_dir import layout, records

_NO_METRIC = {
  *('step', 'time', 'split', 'z_loss'),
  *('learning_rate', 'target_tokens', 'batches'),
}
# Of GLUE without WNLI, and of SuperGLUE.
_TASKS = 8


@dataclasses.dataclass(frozen=True)
class Result:
  """What one run reached.

  Attributes:
    folder: the run directory.
    row: the variant, and what was frozen where that has a name.
    seed: RANDOM_SEED.
    steps: TRAIN_STEPS.
    values: number by column, 'loss' or 'TASK/METRIC'.
    tested: whether they are of a 'test' record.
  """

  folder: pathlib.Path
  row: str
  seed: str
  steps: int
  values: Mapping[str, float]
  tested: bool


def lower_is_better(key: str) -> bool:
  """Whether the metric of a column is a loss."""
  return key.rpartition('/')[2] in ('loss', 'nats_per_token', 'perplexity')


def find(paths: Sequence[str]) -> list[pathlib.Path]:
  """The run directories among and below the folders.

  Raises:
    errors.UserError: there is none. Of several folders, one without a run is
      left out with a note.
  """
  found: dict[pathlib.Path, pathlib.Path] = {}
  empty = []
  for path in paths:
    below = sorted(f.parent for f in pathlib.Path(path).rglob('metrics.jsonl'))
    found |= {folder.resolve(): folder for folder in below}
    if not below:
      empty.append(path)
  sentence = (
    f'There is no run directory, with a metrics.jsonl, in {", ".join(empty)}.'
  )
  if not found:
    raise errors.UserError(sentence)
  if empty:
    logs.say(f'note: {sentence}')
  return list(found.values())


def read_records(
  run: pathlib.Path, split: str, needed: Iterable[str] = ()
) -> list[dict]:
  """A run's records of one split, each with the numbers that are needed.

  Raises:
    errors.UserError: what the run has recorded is damaged.
  """
  found = records.read(run, split)
  damaged = any(
    not isinstance(record.get(name), int | float)
    for record in found
    for name in needed
  )
  if not found and records.last_step(run) is None:
    # The last line may be one that a run is just writing.
    lines = (run / 'metrics.jsonl').read_bytes().rpartition(b'\n')[0]
    damaged = bool(lines.strip())
  if damaged:
    raise errors.UserError(
      f'{run} is damaged: its metrics.jsonl has a line that is no record.'
    )
  return found


def read(folder: pathlib.Path) -> Result | None:
  """What a run reached; None where it was not evaluated yet.

  A run's numbers are those of its 'test' record; without one, the best of its
  'eval' records after step 0. Its task is called as its folder's folder is.

  Raises:
    errors.UserError: config.gin does not say which variant it is.
  """
  settings = layout.settings(folder)
  row = layout.variant(settings)
  if row is None:
    raise errors.UserError(
      f'{folder}: its config.gin sets no ACTIVATION and GATED, so that it is '
      'the run of no variant.'
    )
  frozen = settings.get('FROZEN', '')
  if frozen.startswith('%') and frozen != '%FULL':
    row += f', {frozen[1:].lower().replace("_", " ")}'
  tested = read_records(folder, 'test')[-1:]
  evaluated = [r for r in read_records(folder, 'eval') if r['step']]
  values = best(list(map(with_averages, tested or evaluated)))
  if not values:
    logs.say(f'note: {folder} was not evaluated yet and is left out.')
    return None
  task = folder.resolve().parent.name
  return Result(
    folder,
    row,
    layout.resolved(settings, 'RANDOM_SEED') or '0',
    int(layout.resolved(settings, 'TRAIN_STEPS') or 0),
    {
      f'{task}/{key[5:]}' if key.startswith('task/') else key: value
      for key, value in values.items()
    },
    bool(tested),
  )


def best(found: Sequence[Mapping]) -> dict[str, float]:
  """The best value of each metric over records; NaN is never the best."""
  values: dict[str, float] = {}
  for record in found:
    for key, value in record.items():
      if key in _NO_METRIC or not isinstance(value, int | float):
        continue
      choose = min if lower_is_better(key) else max
      known = values.get(key, math.nan)
      values[key] = value if math.isnan(known) else choose(known, value)
  return values


def with_averages(record: Mapping) -> dict:
  """A record with the averages of GLUE and SuperGLUE, where it has all of one.

  As T5 has it: the mean over the eight tasks of the mean of a task's metrics,
  MNLI's two development sets being one task.
  """
  record = dict(record)
  for benchmark in ('super_glue', 'glue'):
    scores: dict[str, list[float]] = {}
    for key, value in record.items():
      if key.startswith(f'{benchmark}_'):
        task = re.sub('_(mis)?matched$', '', key.partition('/')[0])
        scores.setdefault(task, []).append(value)
    if len(scores) == _TASKS:
      record[f'{benchmark}/average'] = fmean(map(fmean, scores.values()))
  return record
