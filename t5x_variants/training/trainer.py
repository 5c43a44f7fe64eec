"""Builds a run from its parts, restores or starts it, and trains."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax
from etils import epath
from flax import linen as nn

from t5x_variants import errors, logs
from t5x_variants.data import config as data_config
from t5x_variants.distributed import hosts, partitioning
from t5x_variants.model import network, parameters
from t5x_variants.run_dir import (
  changes,
  layout,
  profiling,
  records,
  run_lock,
  throughput,
)
from t5x_variants.training import (
  checkpoints,
  programs,
  selection,
  task_metrics,
  train_state,
  training_loop,
)
from t5x_variants.training import optimizer as optimizer_lib
from t5x_variants.weights import fit
from t5x_variants.weights import saved as weights


def train(
  model: network.Transformer,
  *,
  model_dir: str,
  total_steps: int,
  train_dataset: data_config.DatasetConfig,
  eval_dataset: data_config.DatasetConfig | None,
  optimizer: Callable[[Mapping, optax.Schedule], optax.GradientTransformation],
  learning_rate: optax.Schedule,
  mesh: jax.sharding.Mesh,
  logical_axis_rules: partitioning.Rules,
  periods: training_loop.Periods,
  random_seed: int = 0,
  num_microbatches: int = 1,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  max_to_keep: int | None = 3,
  keep_period: int | None = None,
  initial_checkpoint: str | None = None,
  initial_checkpoint_partial: bool = False,
  profile_steps: Sequence[int] | None = None,
  task_decoding: task_metrics.Settings | None = None,
  best_metric: str | None = None,
  early_stopping_patience: int | None = None,
  test_split: str | None = None,
  frozen: str | None = None,
  configuration: Callable[[], str] | None = None,
) -> None:
  """Trains up to `total_steps`, from the newest checkpoint if there is one.

  Args:
    model: the network.
    model_dir: the run directory; made if absent. One process group trains in
      it at a time, and it is of one variant, model and task for good.
    total_steps: optimizer steps of the whole run, restarts included.
    train_dataset: the training split.
    eval_dataset: the held-out split; None for no evaluation.
    optimizer: from the tree of logical axis names and the learning rate to an
      optax optimizer.
    learning_rate: rate by step.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    periods: of records, evaluations and checkpoints.
    random_seed: of initialisation and dropout.
    num_microbatches: parts a batch is computed in, to save memory.
    label_smoothing: probability given to wrong tokens.
    z_loss: weight of the squared log normaliser.
    max_to_keep: newest checkpoints kept; None keeps all.
    keep_period: checkpoints at its multiples are kept for good.
    initial_checkpoint: whose weights a new run starts from, see
      `weights.saved.open_checkpoint`; it begins at step 0 with a fresh
      optimizer state, and a run that goes on does not look at it.
    initial_checkpoint_partial: whether that may be of another variant; what
      fits is taken.
    profile_steps: the first and the last step to trace for xprof; None traces
      nothing, see `profiling`.
    task_decoding: how the held-out examples are decoded for the metrics that
      their tasks have; None: they are not.
    best_metric: a number of the 'eval' records; the checkpoint where it is
      best is kept.
    early_stopping_patience: so many evaluations without a better one end the
      run; None: none do.
    test_split: at the end the best checkpoint, without `best_metric` the last,
      is evaluated on this split of `eval_dataset`, for a 'test' record.
    frozen: what `optimizer` freezes, see `optimizer.adafactor`; to be printed.
    configuration: returns gin's operative configuration once all is built:
      the text of config.gin, which a run directory keeps to one run by.

  Raises:
    errors.UserError: wrong input, a loss that is not finite, a full disk.
  """
  started = time.time()
  errors.check_positive('TRAIN_STEPS', total_steps)
  profiling.check_steps(profile_steps, total_steps)
  errors.check_positive('NUM_MICROBATCHES', num_microbatches)
  partitioning.check_batch(train_dataset.batch_size, mesh, num_microbatches)
  layout.check_folder(model_dir)
  best = selection.Selection(best_metric, early_stopping_patience)
  share = partitioning.data_share(mesh)
  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules(logical_axis_rules),
    contextlib.ExitStack() as stack,
  ):
    shapes, axes = parameters.shapes_and_axes(model)
    tx = optimizer(axes, learning_rate)
    # An optimizer may refuse the parameters, a block the mesh.
    abstract = programs.abstract_state(
      tx,
      shapes,
      partitioning.param_shardings(shapes, axes, mesh, logical_axis_rules),
      mesh,
    )
    parameters.check_block(
      model,
      shapes,
      train_dataset.batch_size // num_microbatches,
      train_dataset.task_feature_lengths,
    )
    trains = optimizer_lib.what_trains(frozen, shapes)
    batches = _open(train_dataset, model, share)
    evaluation = functools.partial(
      _evaluation,
      model,
      share,
      mesh,
      programs.eval_step(model, num_microbatches),
      task_decoding,
    )
    evaluate = evaluation(eval_dataset, periods.eval_steps)
    if best_metric is not None:
      best.check(*evaluate.names())
    test = evaluation(_test_dataset(eval_dataset, test_split))
    stack.enter_context(layout.removed_if_unused(model_dir))
    folder = layout.make_folder(model_dir)
    hosts.check_shared(folder)
    first = jax.process_index() == 0
    if first:
      stack.enter_context(run_lock.held(folder))
    record = _Configuration(folder, configuration() if configuration else None)
    saved = stack.enter_context(
      checkpoints.Checkpoints(
        folder / 'checkpoints',
        max_to_keep=max_to_keep,
        keep_period=keep_period,
        with_position=share.first,
      )
    )
    state = _restore_or_create(
      model,
      tx,
      functools.partial(
        _initial_weights,
        initial_checkpoint,
        model,
        shapes,
        initial_checkpoint_partial,
      ),
      jax.random.key(random_seed),
      abstract,
      mesh,
      saved,
      batches,
      functools.partial(_check_new, folder, record.before, periods),
    )
    start = int(state.step)
    if first:
      layout.write_text(
        folder / 'model-info.txt', parameters.model_info(shapes, axes)
      )
    logs.say(
      f'{parameters.count(shapes):,} parameters on {mesh.size} '
      f'{jax.devices()[0].device_kind} device(s), mesh '
      f'{dict(mesh.shape)}; run directory {folder}'
    )
    for line in [*trains, *record.lines(start, total_steps)]:
      logs.say(line)
    best.restore(records.evaluations(folder, start))
    saved.keep(best.best_step)
    writer = records.RunWriter(folder, start) if first else records.NoWriter()
    stack.enter_context(writer)
    abstract = jax.tree.map(_abstract, state)
    ended = training_loop.Loop(
      total_steps=total_steps,
      periods=periods,
      mesh=mesh,
      train_step=programs.train_step(
        model,
        tx,
        state,
        random_seed=random_seed,
        num_microbatches=num_microbatches,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
      ),
      # On the host: the same for every process of a run.
      random_key=np.asarray(jax.random.key_data(jax.random.key(random_seed))),
      evaluate=evaluate,
      learning_rate=learning_rate,
      batches=batches,
      saved=saved,
      writer=writer,
      meter=throughput.Meter(
        model.config,
        mesh,
        throughput.Goodput.of(writer.earlier, started, start),
      ),
      trace=profiling.StepTrace(folder, profile_steps),
      selection=best,
      on_first_step=functools.partial(record.write, start, writer, first),
    ).run(state)
    if ended and test_split is not None:
      del state
      _test(test, best, saved, abstract, writer, folder)


class _Configuration:
  """The configuration of a run directory, and that of this start."""

  def __init__(self, folder: pathlib.Path | epath.Path, now: str | None):
    """Compares the two.

    Args:
      folder: the run directory.
      now: gin's operative configuration; None where gin configures nothing.

    Raises:
      errors.UserError: they are not of the same run.
    """
    self._folder, self._now = folder, now
    self._path = folder / 'config.gin'
    self.before = None
    if self._path.exists():
      self.before = self._path.read_bytes().decode(errors='replace')
    self._changed = []
    if self.before is not None and now is not None:
      self._changed = changes.check_same_run(str(folder), self.before, now)

  def lines(self, start: int, total_steps: int) -> list[str]:
    """What changed, for the log of a run that goes on from step `start`."""
    if not self._changed or not start or start >= total_steps:
      return []
    lines = [f'Changed since step {start}: {"; ".join(self._changed)}.']
    if any(text.startswith('TRAIN_STEPS ') for text in self._changed):
      lines.append(
        'The learning rates depend on TRAIN_STEPS, so that this run may '
        f'differ from one that was started with TRAIN_STEPS={total_steps}.'
      )
    return lines

  def write(self, start: int, writer: records.Writer, first: bool) -> None:
    """Writes config.gin; one that differs is kept as config-STEP.gin."""
    if self._now is None or not first:
      return
    writer.write_text('config', self._now)
    if self.before == self._now:
      return
    if self.before is not None and start:
      layout.write_text(self._folder / f'config-{start}.gin', self.before)
    layout.write_text(self._path, self._now)


def _check_new(
  folder: pathlib.Path | epath.Path,
  before: str | None,
  periods: training_loop.Periods,
) -> None:
  """Refuses to start at step 0 where a run has been further.

  Args:
    folder: the run directory, which has no checkpoint.
    before: its config.gin.
    periods: of this start.

  Raises:
    errors.UserError: there are records of steps that come after the first
      checkpoint, so that checkpoints are missing.
  """
  last = records.last_step(folder)
  if last is None:
    return
  key = 'training_loop.Periods.checkpoint'
  earlier = layout.resolved(layout.parsed(before or ''), key) or ''
  period = int(earlier) if earlier.isdigit() else periods.checkpoint
  # A save waits for the one before it: if the first one fails, on a full disk
  # for example, the run ends at the second one.
  if last > 2 * period:
    raise errors.UserError(
      f'MODEL_DIR {folder} has records up to step {last} and no checkpoint, '
      f'although one was written every {period} steps. Put its folder '
      'checkpoints back, or give another MODEL_DIR; starting here at step 0 '
      'would destroy the records.'
    )
  logs.say(
    f'The run ended at step {last}, before its first checkpoint was '
    'written: it starts again at step 0.'
  )


def _initial_weights(
  path: str | None, model: network.Transformer, shapes: Mapping, partial: bool
) -> Mapping:
  """The parameters that a new run takes from elsewhere, by name."""
  if path is None:
    return {}
  taken, lines = fit.initial(
    weights.open_checkpoint(path), shapes, fit.variant_of(model.config), partial
  )
  for line in lines:
    logs.say(line)
  return taken


def _restore_or_create(
  model, tx, initial, key, abstract, mesh, saved, batches, check_new
):
  """The newest whole checkpoint's state, or a new one."""
  where = programs.shardings_of(abstract)
  state = saved.restore_latest(abstract, batches)
  if state is not None:
    logs.say(f'Going on from the checkpoint of step {int(state.step)}.')
    return state
  check_new()
  taken = initial()
  # Runs once, so that optimising its code costs a CPU more than it saves; the
  # compilers of TPU and GPU have no such switch.
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  create = jax.jit(
    functools.partial(train_state.create, model, tx),
    out_shardings=where,
    compiler_options=options,
  )
  compiled = create.lower(key).compile()
  hosts.meet()
  state = compiled(key)
  if taken:
    state = train_state.with_weights(state, tx, taken)
  training_loop.return_free_memory()
  return state


def _open(
  dataset: data_config.DatasetConfig,
  model: network.Transformer,
  share: partitioning.Share,
):
  """Opens this process's share of a split; the vocabulary must fit."""
  batches = dataset.open(share.index, share.count)
  data_config.check_vocabulary(batches, model.config.vocab_size)
  return batches


def _evaluation(
  model, share, mesh, eval_step, decoding, dataset, count: int | None = None
) -> training_loop.Evaluation:
  """Evaluation on the first `count` batches of a split, or on all, once."""
  if dataset is None:
    return training_loop.Evaluation(eval_step, [], mesh)
  batches = _open(dataset, model, share)
  if count is not None:
    # Kept in memory, for each evaluation.
    found = list(itertools.islice(batches, count))
    # A share may end before another's; all hosts take as many steps.
    missing = hosts.largest(len(found)) - len(found)
    batches = found + [batches.padding() for _ in range(missing)]
  tasks = None
  if decoding is not None:
    tasks = task_metrics.Evaluator(model, dataset, decoding, mesh)
  return training_loop.Evaluation(eval_step, batches, mesh, tasks)


def _test_dataset(eval_dataset, split: str | None):
  """The held-out data with another split."""
  if split is None:
    return None
  if jax.process_count() > 1:
    raise errors.UserError(
      f'TEST_SPLIT is {split!r} and there are {jax.process_count()} processes: '
      'set it to None and evaluate the best checkpoint on one host, with '
      't5x_variants.evaluate.'
    )
  return dataclasses.replace(eval_dataset, split=split)


def _abstract(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _test(
  test: training_loop.Evaluation,
  best: selection.Selection,
  saved: checkpoints.Checkpoints,
  abstract: train_state.TrainState,
  writer: records.Writer,
  folder: pathlib.Path,
) -> None:
  """Writes the best checkpoint's 'test' record, unless it stands there."""
  saved.wait()
  step = best.best_step or saved.latest_step()
  assert step is not None  # Waited for above.
  if any(record['step'] == step for record in records.read(folder, 'test')):
    return
  values = test(saved.restore_step(step, abstract).params)
  writer.write(step, 'test', values)
  logs.say(f'test, step {step}: {training_loop.evaluation_line(values)}')
