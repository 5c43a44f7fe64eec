"""Trains a model: builds its parts, restores or creates it, runs the loop."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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
  configuration,
  layout,
  profiling,
  records,
  run_lock,
  throughput,
)
from t5x_variants.training import (
  checkpoints,
  evaluator,
  programs,
  selection,
  train_state,
  training_loop,
)
from t5x_variants.training import optimizer as optimizer_lib
from t5x_variants.weights import matching


def train(
  model: network.Transformer,
  *,
  model_dir: str,
  total_steps: int,
  train_dataset: data_config.DatasetConfig,
  optimization: programs.OptimizationConfig,
  mesh: jax.sharding.Mesh,
  logical_axis_rules: partitioning.Rules,
  evaluation: evaluator.EvaluationConfig,
  checkpointing: checkpoints.CheckpointConfig,
  initial_weights: matching.InitialWeightsConfig | None = None,
  log_period: int = 10,
  random_seed: int = 0,
  profile_steps: Sequence[int] | None = None,
  operative_config: Callable[[], str] | None = None,
) -> None:
  """Trains up to `total_steps`, from the newest checkpoint if there is one.

  Args:
    model: the network.
    model_dir: the run directory; made if absent. One process group trains in
      it at a time, and it is of one variant, model and task for good.
    total_steps: optimizer steps of the whole run, restarts included.
    train_dataset: the training split.
    optimization: the objective, the optimizer and its learning rate.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    evaluation: the held-out split and what follows from it.
    checkpointing: which steps are saved and kept.
    initial_weights: the weights that a new run starts from; None initialises
      all of them.
    log_period: steps that one training record covers.
    random_seed: of initialisation and dropout.
    profile_steps: the first and the last step to trace for xprof; None traces
      nothing, see `profiling`.
    operative_config: returns gin's operative configuration once all is built:
      the text of config.gin, which a run directory keeps to one run by.

  Raises:
    errors.UserError: wrong input, a loss that is not finite, a full disk.
  """
  started = time.time()
  errors.check_positive('TRAIN_STEPS', total_steps)
  errors.check_positive('LOG_PERIOD', log_period)
  profiling.check_steps(profile_steps, total_steps)
  partitioning.check_batch(
    train_dataset.batch_size, mesh, optimization.num_microbatches
  )
  layout.check_folder(model_dir)
  best = selection.Selection(
    evaluation.best_metric, evaluation.early_stopping_patience
  )
  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules(logical_axis_rules),
    contextlib.ExitStack() as stack,
  ):
    parts = _build(
      model, optimization, train_dataset, evaluation, mesh, logical_axis_rules
    )
    if best.metric is not None:
      best.check(*parts.held_out.names())
    folder = stack.enter_context(_run_directory(model_dir))
    config = configuration.Configuration(
      folder, operative_config() if operative_config else None
    )
    saved = stack.enter_context(
      checkpoints.Checkpoints(
        folder / 'checkpoints',
        checkpointing,
        with_position=partitioning.data_shard(mesh).first,
      )
    )
    state = saved.restore_latest(parts.abstract, parts.batches)
    if state is None:
      config.check_new(checkpointing.period)
      state = _create(parts, mesh, random_seed, initial_weights)
    else:
      logs.say(f'Going on from the checkpoint of step {int(state.step)}.')
    start = int(state.step)
    first = jax.process_index() == 0
    if first:
      layout.write_text(
        folder / 'model-info.txt',
        parameters.model_info(parts.shapes, parts.axes),
      )
    logs.say(
      f'{parameters.count(parts.shapes):,} parameters on {mesh.size} '
      f'{jax.devices()[0].device_kind} device(s), mesh {dict(mesh.shape)}; '
      f'run directory {folder}'
    )
    for line in [*parts.trains, *config.lines(start, total_steps)]:
      logs.say(line)
    best.restore(records.evaluations(folder, start))
    saved.keep(best.best_step)
    writer: records.Writer = (
      records.RunWriter(folder, start) if first else records.NoWriter()
    )
    stack.enter_context(writer)
    abstract = jax.tree.map(_abstract, state)
    ended = training_loop.Loop(
      total_steps=total_steps,
      log_period=log_period,
      evaluation_period=evaluation.period,
      checkpoint_period=checkpointing.period,
      mesh=mesh,
      train_step=programs.train_step(
        model, parts.tx, state, optimization, random_seed
      ),
      # On the host: the same for every process of a run.
      random_key=np.asarray(jax.random.key_data(jax.random.key(random_seed))),
      evaluate=parts.held_out,
      learning_rate=optimization.learning_rate,
      batches=parts.batches,
      saved=saved,
      writer=writer,
      meter=throughput.Meter(
        model.config,
        mesh,
        throughput.Goodput.of(writer.earlier, started, start),
      ),
      trace=profiling.StepTrace(folder, profile_steps),
      selection=best,
      on_first_step=(
        functools.partial(config.write, start, writer) if first else None
      ),
    ).run(state)
    del state
    if ended and parts.test is not None:
      _test(parts.test, best, saved, abstract, writer, folder)


@dataclasses.dataclass(frozen=True)
class _Parts:
  """What a run is made of before anything of it is on disk.

  Attributes:
    model: the network.
    shapes: of its parameters.
    axes: logical axes of its parameters.
    tx: the optimizer.
    abstract: the state as shapes with shardings.
    trains: lines that say which parameters train, if not all do.
    batches: this process's shard of the training split.
    held_out: evaluates the held-out split.
    test: evaluates the test split; None without one.
  """

  model: network.Transformer
  shapes: Mapping
  axes: Mapping
  tx: optax.GradientTransformation
  abstract: train_state.TrainState
  trains: Sequence[str]
  batches: data_config.Batches
  held_out: evaluator.Evaluator
  test: evaluator.Evaluator | None


def _build(
  model: network.Transformer,
  optimization: programs.OptimizationConfig,
  train_dataset: data_config.DatasetConfig,
  evaluation: evaluator.EvaluationConfig,
  mesh: jax.sharding.Mesh,
  rules: partitioning.Rules,
) -> _Parts:
  """Makes the parts; an optimizer or a block may refuse what it is given."""
  shapes, axes = parameters.shapes_and_axes(model)
  tx = optimization.optimizer(axes, optimization.learning_rate)
  where = partitioning.param_shardings(shapes, axes, mesh, rules)
  abstract = programs.abstract_state(tx, shapes, where, mesh)
  count = optimization.num_microbatches
  parameters.check_block(
    model,
    shapes,
    train_dataset.batch_size // count,
    train_dataset.task_feature_lengths,
  )
  return _Parts(
    model,
    shapes,
    axes,
    tx,
    abstract,
    trains=optimizer_lib.what_trains(optimization.frozen, shapes),
    batches=evaluator.open_shard(train_dataset, model, mesh),
    held_out=evaluator.open_held_out(evaluation, model, mesh, count),
    test=evaluator.open_test(evaluation, model, mesh, count),
  )


@contextlib.contextmanager
def _run_directory(model_dir: str) -> Iterator[pathlib.Path | epath.Path]:
  """The run directory, held by this process group alone."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(layout.removed_if_unused(model_dir))
    folder = layout.make_folder(model_dir)
    hosts.check_shared(folder)
    if jax.process_index() == 0:
      stack.enter_context(run_lock.held(folder))
    yield folder


def _create(
  parts: _Parts,
  mesh: jax.sharding.Mesh,
  random_seed: int,
  initial_weights: matching.InitialWeightsConfig | None,
) -> train_state.TrainState:
  """The state of a new run."""
  taken: Mapping[str, np.ndarray] = {}
  if initial_weights is not None:
    taken, lines = initial_weights.read(parts.model.config, parts.shapes)
    for line in lines:
      logs.say(line)
  # Runs once, so that optimising its code costs a CPU more than it saves; the
  # compilers of TPU and GPU have no such switch.
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  create = jax.jit(
    functools.partial(train_state.create, parts.model, parts.tx),
    out_shardings=programs.shardings_of(parts.abstract),
    compiler_options=(
      {'xla_backend_optimization_level': 0} if on_cpu else None
    ),
  )
  key = jax.random.key(random_seed)
  compiled = create.lower(key).compile()
  hosts.meet()
  state = compiled(key)
  if taken:
    state = train_state.with_weights(state, parts.tx, taken)
  training_loop.return_free_memory()
  return state


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _test(
  test: evaluator.Evaluator,
  best: selection.Selection,
  saved: checkpoints.Checkpoints,
  abstract: train_state.TrainState,
  writer: records.Writer,
  folder: pathlib.Path | epath.Path,
) -> None:
  """Writes the best checkpoint's 'test' record, unless there is one."""
  saved.wait()
  step = best.best_step or saved.latest_step()
  assert step is not None  # Waited for above.
  if any(record['step'] == step for record in records.read(folder, 'test')):
    return
  values = test(saved.restore_step(step, abstract).params)
  writer.write(step, 'test', values)
  logs.say(f'test, step {step}: {evaluator.evaluation_line(values)}')
