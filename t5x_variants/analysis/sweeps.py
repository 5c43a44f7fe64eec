"""A sweep as a list of runs: variants x data x seeds, in stages.

A stage is one kind of run, such as pretraining or fine-tuning; each of its
runs is the README's four files (a model, a variant, data, what to do) and a
seed. A later stage may start from the runs of an earlier one. Nothing is run
here, and neither jax nor TensorFlow is imported: `scheduler` runs the list.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from t5x_variants import errors
from t5x_variants.run_dir import layout, records

_NAME = re.compile(r'[\w.-]+')


@dataclasses.dataclass(frozen=True)
class Stage:
  """One kind of run; a file is `gin/<kind>/NAME.gin` by name, or a path.

  Attributes:
    name: a word; folders of runs are called after it.
    model: of gin/models.
    data: the tasks, one or several of gin/data; or by name a list, the file
      and more bindings: {'cola': ['glue', "TASK='cola'"]}.
    run: of gin/runs.
    seeds: of the runs of each variant and task.
    bindings: more values for all of them, each 'NAME=VALUE' as gin has it.
    start_from: the stage whose runs these start from, of the same variant and
      seed; where that stage has one seed only, from that one.
    seed_macro: what the seed is called in the file of gin/runs.
    tested: whether a run ends with a record of the split 'test'.
    variants: those of this stage; None: all of the sweep's.
  """

  name: str
  model: str
  data: Sequence[str] | Mapping[str, Sequence[str]]
  run: str
  seeds: Sequence[int]
  bindings: Sequence[str] = ()
  start_from: str | None = None
  seed_macro: str = 'RANDOM_SEED'
  tested: bool = False
  variants: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    name: its folder's name below the sweep's.
    folder: its MODEL_DIR.
    arguments: what follows `python -m t5x_variants.train`.
    needs: the name of the run it starts from, or None.
    tested: whether it ends with a record of the split 'test'.
  """

  name: str
  folder: pathlib.Path
  arguments: tuple[str, ...]
  needs: str | None
  tested: bool

  def finished(self) -> bool:
    """Whether the records say that all has been done."""
    if not (self.folder / 'metrics.jsonl').exists():
      return False
    if self.tested:
      return bool(records.read(self.folder, 'test'))
    # The checkpoint of the last step is the last thing that is written.
    try:
      step, _ = layout.newest_checkpoint(self.folder)
    except errors.UserError:
      return False
    return str(step) == layout.settings(self.folder).get('TRAIN_STEPS')


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What gin files of gin/sweeps configure.

  Attributes:
    folder: below which the run directories lie.
    variants: of gin/variants, by name or path.
    stages: in the order in which they depend on each other.
  """

  folder: str
  variants: Sequence[str]
  stages: Sequence[Stage]


def plan(sweep: Sweep, gin_folder: pathlib.Path) -> list[Run]:
  """Every run of a sweep, those that others start from first.

  Args:
    sweep: what to run.
    gin_folder: where the shipped gin files are.

  Raises:
    errors.UserError: a file that is not there, nothing to run, a stage of an
      unknown name, or two runs in one folder.
  """
  if not isinstance(sweep.folder, str) or not sweep.folder:
    raise errors.UserError(
      f'SWEEP_DIR is {sweep.folder!r}; it must be the path of a folder, quoted.'
    )
  if not sweep.variants or not sweep.stages:
    raise errors.UserError(
      'The sweep has nothing to run: name at least one variant and one stage.'
    )
  files = {name: _file(gin_folder, 'variants', name) for name in sweep.variants}
  found: list[Run] = []
  stages: dict[str, Stage] = {}
  for stage in sweep.stages:
    _check_stage(sweep, stage, stages)
    stages[stage.name] = stage
    found += _runs_of(sweep, stage, stages, files, gin_folder)
  name, count = collections.Counter(run.name for run in found).most_common(1)[0]
  if count > 1:
    raise errors.UserError(
      f'Two runs of the sweep would share the folder {name}: a '
      'variant, a task or a seed is given twice.'
    )
  return found


def _check_stage(sweep: Sweep, stage: Stage, stages: dict[str, Stage]) -> None:
  if not _NAME.fullmatch(stage.name) or stage.name in stages:
    raise errors.UserError(
      f'A stage is called {stage.name!r}; give each a word of its own.'
    )
  if unknown := set(stage.variants or ()) - set(sweep.variants):
    raise errors.UserError(
      f'The stage {stage.name!r} has the variant {min(unknown)!r}, which '
      f'is none of the sweep: {", ".join(sweep.variants)}.'
    )
  if not stage.data or not stage.seeds:
    raise errors.UserError(
      f'The stage {stage.name!r} has nothing to run: name at least one file of '
      'gin/data and one seed.'
    )
  if stage.start_from is None:
    return
  if stage.start_from not in stages:
    raise errors.UserError(
      f'The stage {stage.name!r} starts from {stage.start_from!r}, which is no '
      f'stage before it; those are: {", ".join(stages) or "none"}.'
    )
  before = stages[stage.start_from]
  if len(before.data) > 1:
    raise errors.UserError(
      f'The stage {stage.name!r} starts from {before.name!r}, which has '
      f'{len(before.data)} tasks: it must have one.'
    )
  lacking = set(stage.seeds) - set(before.seeds)
  if len(before.seeds) > 1 and lacking:
    raise errors.UserError(
      f'The stage {stage.name!r} starts from {before.name!r}, which has no run '
      f'of seed {min(lacking)}: give it those seeds, or one for all.'
    )


def _tasks(stage: Stage) -> dict[str, tuple[str, ...]]:
  """By name the file of gin/data and the bindings of each task."""
  if isinstance(stage.data, Mapping):
    return {name: tuple(task) for name, task in stage.data.items()}
  return {pathlib.PurePath(file).stem: (file,) for file in stage.data}


def _runs_of(sweep, stage, stages, files, gin_folder) -> list[Run]:
  model = _file(gin_folder, 'models', stage.model)
  run = _file(gin_folder, 'runs', stage.run)
  found = []
  for task, (data, *options) in _tasks(stage).items():
    data = _file(gin_folder, 'data', data)
    # Seeds outside variants: a sweep that is stopped half-way has compared
    # all variants on some seeds.
    for seed in stage.seeds:
      for variant in stage.variants or sweep.variants:
        name = _run_name(stage, task, variant, seed)
        folder = pathlib.Path(sweep.folder) / name
        bindings = [f'MODEL_DIR={str(folder)!r}', f'{stage.seed_macro}={seed}']
        needs = None
        if stage.start_from is not None:
          needs = _start(stages[stage.start_from], variant, seed)
          start_folder = str(pathlib.Path(sweep.folder) / needs)
          bindings.append(f'INITIAL_CHECKPOINT_PATH={start_folder!r}')
        arguments = [
          *(f'--gin_file={f}' for f in (model, files[variant], data, run)),
          *(f'--gin.{b}' for b in (*bindings, *options, *stage.bindings)),
        ]
        found.append(Run(name, folder, tuple(arguments), needs, stage.tested))
  return found


def _start(before: Stage, variant: str, seed: int) -> str:
  """The run that one of a later stage starts from."""
  (task,) = _tasks(before)
  only = before.seeds[0] if len(before.seeds) == 1 else seed
  return _run_name(before, task, variant, only)


def _run_name(stage: Stage, task: str, variant: str, seed: int) -> str:
  return f'{stage.name}/{task}/{pathlib.PurePath(variant).stem}-{seed}'


def _file(gin_folder: pathlib.Path, kind: str, name: str) -> str:
  """The path of a gin file as the command line has it."""
  if name.endswith('.gin'):
    path = name
    there = pathlib.Path(name).is_file() or (gin_folder.parent / name).is_file()
  else:
    path = f'gin/{kind}/{name}.gin'
    there = (gin_folder / kind / f'{name}.gin').is_file()
  if there:
    return path
  known = sorted(file.stem for file in (gin_folder / kind).glob('*.gin'))
  raise errors.UserError(
    f'There is no {path}: gin/{kind} has {", ".join(known)}; or give the path '
    'of a file of yours, which ends in .gin.'
  )
