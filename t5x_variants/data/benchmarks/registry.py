"""GLUE, SuperGLUE and SQuAD by name, alone or mixed as T5 mixes them.

A mixture draws from each task in proportion to its examples, at most K of them
(Raffel et al., JMLR 2020, section 3.5.2); a task that is in both GLUE and
SuperGLUE (RTE) counts half in each where both are mixed. In gin:

  MIXTURE_OR_TASK_NAME = @benchmarks.register()
  benchmarks.register.task = 'glue'
  benchmarks.register.vocabulary = @vocabularies.byte()

Tasks and mixtures are seqio's, with seqio's metrics: every task's
`predict_metric_fns` and `postprocess_fn` say how it is judged (`scores`).
"""

import difflib
from collections.abc import Sequence

from t5x_variants import errors
from t5x_variants.data.benchmarks import glue, recipes, squad, super_glue
from t5x_variants.data.tasks import registry as tasks

RECIPES: dict[str, recipes.Recipe] = {
  **{f'glue_{name}': recipe for name, recipe in glue.RECIPES.items()},
  **{f'super_glue_{name}': x for name, x in super_glue.RECIPES.items()},
  **squad.RECIPES,
}
GROUPS = {
  'glue': tuple(name for name in RECIPES if name.startswith('glue_')),
  'super_glue': tuple(x for x in RECIPES if x.startswith('super_glue_')),
  'all': tuple(RECIPES),
  # One training set, two development sets.
  'glue_mnli': ('glue_mnli_matched', 'glue_mnli_mismatched'),
}
_TWICE = {'glue_rte', 'super_glue_rte'}


def names() -> list[str]:
  """Every name that `register` knows: tasks, and groups of tasks."""
  return [*GROUPS, *RECIPES]


def find(task) -> list[str]:
  """The tasks that a name means.

  Args:
    task: a task or a group of `names()`, with or without its benchmark's name
      ('cola', 'mnli'); or a list of such.

  Returns:
    Names of RECIPES, each once.

  Raises:
    errors.UserError: an unknown name, with the known ones; one that two
      benchmarks have.
  """
  if not isinstance(task, str):
    found = [name for each in task for name in find(each)]
    if not found:
      raise errors.UserError(f'TASK is {task!r}; name one of {names()}.')
    return list(dict.fromkeys(found))
  if task in GROUPS:
    return list(GROUPS[task])
  if task in RECIPES:
    return [task]
  short = [f'{benchmark}_{task}' for benchmark in ('glue', 'super_glue')]
  found = [name for name in short if name in RECIPES or name in GROUPS]
  if len(found) > 1:
    raise errors.UserError(
      f'TASK is {task!r}, which is in two benchmarks: choose one of {found}.'
    )
  if not found:
    short = [name.split('glue_')[-1] for name in names()]
    near = difflib.get_close_matches(str(task), [*names(), *short], 1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise errors.UserError(
      f'TASK is {task!r}, which is no task{hint}: choose one of {names()}, or a'
      ' list of them.'
    )
  return find(found[0])


def rates(task, maximum: float = 2**19) -> dict[str, float]:
  """What a mixture draws of each task, in proportion.

  Args:
    task: see `find`.
    maximum: K, the examples of which larger tasks pretend to have no more.

  Returns:
    min(number of training examples, K) by task; RTE half where it is twice.
  """
  if not isinstance(maximum, int | float) or not maximum > 0:
    raise errors.UserError(
      f'MIXTURE_MAXIMUM is {maximum!r}; it must be a number above 0.'
    )
  found = find(task)
  twice = set(found) >= _TWICE
  return {
    name: min(float(RECIPES[name].size), float(maximum))
    * (0.5 if twice and name in _TWICE else 1.0)
    for name in found
  }


def register(
  task: str | Sequence[str],
  vocabulary,
  glue_folder: str | None = None,
  super_glue_folder: str | None = None,
  squad_folder: str | None = None,
  tfds_data_dir: str | None = None,
  download: bool = False,
  maximum: float = 2**19,
) -> str:
  """Registers a task of a benchmark, or a mixture of several.

  Args:
    task: which, see `find`.
    vocabulary: the one that the model was trained with.
    glue_folder: GLUE's files, the folder that holds CoLA and the rest; None:
      TFDS.
    super_glue_folder: SuperGLUE's files, the folder that holds BoolQ and the
      rest; None: TFDS.
    squad_folder: SQuAD's two files; None: TFDS.
    tfds_data_dir: TFDS's folder; None: its own default.
    download: whether TFDS may download and prepare what is missing.
    maximum: see `rates`.

  Returns:
    The name of the task or mixture, such as 'glue_cola' or 'glue'.

  Raises:
    errors.UserError: an unknown task, or a file that is not there.
  """
  folders = {
    'glue': glue_folder,
    'super': super_glue_folder,
    'squad': squad_folder,
  }
  found = rates(task, maximum)
  # All that can be missing is looked for before anything is registered.
  sources = [
    recipes.ExampleSource(
      name, RECIPES[name], folders[name.split('_')[0]], tfds_data_dir, download
    )
    for name in found
  ]
  registered = [
    tasks.text_to_text(
      source,
      vocabulary,
      metric_fns=RECIPES[source.name].metric_fns,
      postprocess_fn=RECIPES[source.name].postprocess_fn,
    )
    for source in sources
  ]
  if len(registered) == 1:
    return registered[0]
  return tasks.mixture(
    dict(zip(registered, found.values(), strict=True)),
    task if isinstance(task, str) else None,
  )
