"""The training loop: steps, records, evaluation, checkpoints, and stopping."""

import contextlib
import ctypes
import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import optax
from flax import linen as nn

from t5x_variants import (
  checkpoints,
  errors,
  metrics,
  network,
  partitioning,
  preemption,
  train_state,
)
from t5x_variants import train_step as step_lib
from t5x_variants.data import config as data_config


def _check_positive(name: str, value: int) -> None:
  if not isinstance(value, int) or value < 1:
    raise errors.UserError(
      f'{name} is {value!r}; it must be a whole number from 1 up.'
    )


@dataclasses.dataclass(frozen=True)
class Periods:
  """How often what happens, in steps.

  Attributes:
    log: steps one training record covers.
    eval: between evaluations; one more at the start and at the end.
    eval_steps: batches of the held-out split in one evaluation.
    checkpoint: between checkpoints; one more at the end.
  """

  log: int = 10
  eval: int = 1000
  eval_steps: int = 20
  checkpoint: int = 1000

  def __post_init__(self):
    for name, value in (
      ('LOG_PERIOD', self.log),
      ('EVAL_PERIOD', self.eval),
      ('EVAL_STEPS', self.eval_steps),
      ('CHECKPOINT_PERIOD', self.checkpoint),
    ):
      _check_positive(name, value)


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
  random_seed: int = 0,
  num_microbatches: int = 1,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  periods: Periods = Periods(),
  max_to_keep: int | None = 3,
  keep_period: int | None = None,
  on_start: Callable[[metrics.RunWriter], None] = lambda writer: None,
) -> None:
  """Trains up to `total_steps`, from the newest checkpoint if there is one.

  Args:
    model: the network.
    model_dir: the run directory; made if absent.
    total_steps: optimizer steps of the whole run, restarts included.
    train_dataset: the training split.
    eval_dataset: the held-out split; None for no evaluation.
    optimizer: from the tree of logical axis names and the learning rate to an
      optax optimizer.
    learning_rate: rate by step.
    mesh: devices, axes `data` and `model`.
    logical_axis_rules: logical axis to mesh axis.
    random_seed: of initialisation and dropout.
    num_microbatches: parts a batch is computed in, to save memory.
    label_smoothing: probability given to wrong tokens.
    z_loss: weight of the squared log normaliser.
    periods: of records, evaluations and checkpoints.
    max_to_keep: newest checkpoints kept; None keeps all.
    keep_period: checkpoints at its multiples are kept for good.
    on_start: called when all is built and before the first step.

  Raises:
    errors.UserError: wrong input, a loss that is not finite, a full disk.
  """
  _check_positive('TRAIN_STEPS', total_steps)
  _check_positive('NUM_MICROBATCHES', num_microbatches)
  partitioning.check_batch(train_dataset.batch_size, mesh, num_microbatches)
  folder = _make_folder(model_dir)
  with jax.set_mesh(mesh), nn.logical_axis_rules(logical_axis_rules):
    shapes, axes = train_state.shapes_and_axes(model)
    tx = optimizer(axes, learning_rate)
    batches = _open(train_dataset, model)
    with contextlib.ExitStack() as stack:
      saved = checkpoints.Checkpoints(
        folder / 'checkpoints',
        max_to_keep=max_to_keep,
        keep_period=keep_period,
      )
      stack.callback(saved.close)
      state = _restore_or_create(
        functools.partial(train_state.create, model, tx),
        jax.random.key(random_seed),
        shapes,
        partitioning.param_shardings(shapes, axes, mesh, logical_axis_rules),
        mesh,
        saved,
        batches,
      )
      (folder / 'model-info.txt').write_text(
        train_state.model_info(shapes, axes), encoding='utf-8'
      )
      metrics.say(
        f'{train_state.count(shapes):,} parameters on {mesh.size} '
        f'{jax.devices()[0].device_kind} device(s), mesh '
        f'{dict(mesh.shape)}; run directory {folder}'
      )
      writer = metrics.RunWriter(folder, int(state.step))
      stack.callback(writer.close)
      on_start(writer)
      train_step = step_lib.make_train_step(
        model,
        tx,
        random_seed=random_seed,
        num_microbatches=num_microbatches,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
      )
      _Loop(
        total_steps=total_steps,
        periods=periods,
        mesh=mesh,
        train_step=jax.jit(
          train_step,
          out_shardings=(_shardings_of(state), None),
          donate_argnums=0,
        ),
        evaluate=_Evaluation(
          jax.jit(step_lib.make_eval_step(model, num_microbatches)),
          _held_out(eval_dataset, model, periods.eval_steps),
          mesh,
        ),
        learning_rate=learning_rate,
        batches=batches,
        saved=saved,
        writer=writer,
      ).run(state)


@dataclasses.dataclass
class _Loop:
  """Everything the loop holds on to; `run` is the loop."""

  total_steps: int
  periods: Periods
  mesh: jax.sharding.Mesh
  train_step: Callable
  evaluate: '_Evaluation'
  learning_rate: optax.Schedule
  batches: data_config.Batches
  saved: checkpoints.Checkpoints
  writer: metrics.RunWriter

  def run(self, state: train_state.TrainState) -> None:
    """Runs from the state's step to the last one, or until told to stop."""
    start = int(state.step)
    if start >= self.total_steps:
      metrics.say(
        f'Nothing to do: the run is at step {start} of {self.total_steps}.'
      )
      return
    if start == 0:
      self._evaluate(0, state)
    clock = metrics.Clock()
    train_step = in_flight = None
    with preemption.StopRequest() as stop:
      for step in range(start + 1, self.total_steps + 1):
        with clock.waiting():
          batch = next(self.batches)
        batch = partitioning.global_batch(batch, self.mesh)
        if train_step is None:
          train_step = self._compile(state, batch)
          clock = metrics.Clock()
        state, sums = train_step(state, batch)
        # One step ahead of the device and no further: more would only delay
        # the answer to a signal and blur what is waited for.
        jax.block_until_ready(in_flight)
        in_flight = sums
        # Asked once: a signal that comes while this step is being saved is
        # answered after the next one.
        stopping = bool(stop)
        state = self._after(step, state, clock, stopping)
        if stopping:
          self.saved.wait()
          metrics.say(
            f'{stop.signal_name}: saved step {step} and stopped. The same '
            'command goes on from there.'
          )
          return

  def _compile(self, state: train_state.TrainState, batch: Mapping) -> Callable:
    """Compiles the step, which for a large model takes minutes."""
    begun = time.perf_counter()
    compiled = self.train_step.lower(state, batch).compile()
    _return_free_memory()
    metrics.say(
      f'Compiled the training step in {time.perf_counter() - begun:.1f} s.'
    )
    return compiled

  def _after(
    self, step: int, state: train_state.TrainState, clock, stop: bool
  ) -> train_state.TrainState:
    """What is due after a step: a record, an evaluation, a checkpoint."""
    last = step == self.total_steps
    log = last or step % self.periods.log == 0
    save = last or stop or step % self.periods.checkpoint == 0
    if log or save:
      self._check_finite(step, state)
    if log:
      state = self._record(step, state, clock)
    with clock.paused():
      if last or step % self.periods.eval == 0:
        self._evaluate(step, state)
      if save:
        self.saved.save(step, state, self.batches)
    return state

  def _check_finite(self, step: int, state: train_state.TrainState) -> None:
    """Stops before anything that is not a number is saved."""
    loss, norm = float(state.sums['loss']), float(state.sums['gradient_norm'])
    if math.isfinite(loss) and math.isfinite(norm):
      return
    raise errors.UserError(
      f'The loss or its gradient is not finite at step {step} (summed loss '
      f'{loss}, summed gradient norm {norm}), so the run stops. '
      f'{self._last_good()}. Try '
      'a lower learning rate, above all for the coefficients '
      '(COEFFICIENT_LEARNING_RATE), or float32.'
    )

  def _last_good(self) -> str:
    step = self.saved.latest_step()
    if step is None:
      return 'There is no checkpoint yet'
    return f'The checkpoint of step {step} is the last good one and is kept'

  def _record(
    self, step: int, state: train_state.TrainState, clock
  ) -> train_state.TrainState:
    """Writes the record since the one before and starts the next."""
    sums = jax.device_get(state.sums)
    values = metrics.per_token(sums) | {
      'gradient_norm': float(sums['gradient_norm'] / sums['steps']),
      'learning_rate': float(self.learning_rate(step - 1)),
      **clock.read(float(sums['tokens'] / sums['steps'])),
    }
    self.writer.write(step, 'train', values)
    metrics.say(metrics.progress_line(step, self.total_steps, values))
    zeros = jax.device_put(
      train_state.zero_sums(), _shardings_of(dict(state.sums))
    )
    return state.replace(sums=zeros)

  def _evaluate(self, step: int, state: train_state.TrainState) -> None:
    values = self.evaluate(state.params)
    if values and not math.isfinite(values['loss']):
      raise errors.UserError(
        f'The held-out loss is {values["loss"]} at step {step}, so the run '
        f'stops. {self._last_good()}.'
      )
    if values:
      self.writer.write(step, 'eval', values)
      metrics.say(
        f'held out at step {step}: loss {values["loss"]:.4f} nats per '
        f'target token, accuracy {values["accuracy"]:.2%}'
      )


class _Evaluation:
  """Loss on the first batches of the held-out split, the same every time."""

  def __init__(self, eval_step: Callable, held_out: list, mesh):
    self._eval_step = eval_step
    self._held_out = held_out
    self._mesh = mesh

  def __call__(self, params: Mapping) -> dict[str, float]:
    if not self._held_out:
      return {}
    sums = [
      self._eval_step(params, partitioning.global_batch(batch, self._mesh))
      for batch in self._held_out
    ]
    return metrics.per_token(
      jax.tree.map(lambda *x: sum(map(float, x)), *jax.device_get(sums))
    )


def _restore_or_create(create, key, shapes, shardings, mesh, saved, batches):
  """The newest whole checkpoint's state, or a fresh one."""
  abstract = jax.eval_shape(create, key)
  where = partitioning.state_shardings(abstract, shapes, shardings, mesh)
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract,
    where,
  )
  state = saved.restore_latest(abstract, batches)
  if state is not None:
    metrics.say(f'Going on from the checkpoint of step {int(state.step)}.')
    return state
  # Runs once, so that optimising its code costs a CPU more than it saves; the
  # compilers of TPU and GPU have no such switch.
  options = {'xla_backend_optimization_level': 0}
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  state = jax.jit(
    create, out_shardings=where, compiler_options=options if on_cpu else None
  )(key)
  _return_free_memory()
  return state


def _return_free_memory() -> None:
  """Gives the compiler's freed memory back to the system, where libc can.

  Otherwise it stays with the process, and the first step's buffers come on
  top: tools/bench_train.py prints the peak.
  """
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).malloc_trim(0)


def _shardings_of(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _open(dataset: data_config.DatasetConfig, model: network.Transformer):
  """Opens this process's share of a split; the vocabulary must fit."""
  batches = dataset.open(jax.process_index(), jax.process_count())
  if batches.vocab_size > model.config.vocab_size:
    raise errors.UserError(
      f'The vocabulary has {batches.vocab_size} ids, sentinels included, '
      f'but the model has VOCAB_SIZE {model.config.vocab_size}: ids above '
      'it would be read as nothing. Use a model file with at least '
      f'{batches.vocab_size}, or set --gin.VOCAB_SIZE.'
    )
  return batches


def _held_out(dataset, model: network.Transformer, count: int) -> list:
  """The first `count` batches of the held-out split, kept in memory."""
  if dataset is None:
    return []
  batches = _open(dataset, model)
  return [batch for _, batch in zip(range(count), batches, strict=False)]


def _make_folder(model_dir: str) -> pathlib.Path:
  if not isinstance(model_dir, str) or not model_dir:
    raise errors.UserError(
      f'MODEL_DIR is {model_dir!r}; it must be the path of a folder, quoted: '
      '--gin.MODEL_DIR="\'runs/mine\'".'
    )
  if '://' in model_dir:
    raise errors.UserError(
      f'MODEL_DIR {model_dir} is on remote storage, which records cannot be '
      'written to yet; use a local folder.'
    )
  folder = pathlib.Path(os.path.abspath(os.path.expanduser(model_dir)))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / '.writable'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise errors.UserError(
      f'MODEL_DIR {model_dir} cannot be written to: {error.strerror}. Choose '
      'a folder you may write to.'
    ) from error
  return folder
