"""The training loop: steps, records, evaluations, checkpoints, and stopping."""

import contextlib
import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from t5x_variants import errors, logs
from t5x_variants.data import config as data_config
from t5x_variants.distributed import (
  hosts,
  interrupts,
  partitioning,
  preemption,
)
from t5x_variants.run_dir import profiling, records, throughput
from t5x_variants.training import (
  checkpoints,
  evaluator,
  selection,
  train_state,
)

# So many steps after a restore, the checkpoint itself may be at fault.
_SOON = 100


@dataclasses.dataclass
class Loop:
  """Everything the loop holds on to; `run` is the loop."""

  total_steps: int
  log_period: int
  evaluation_period: int
  checkpoint_period: int
  mesh: jax.sharding.Mesh
  train_step: jax.stages.Wrapped
  random_key: np.ndarray  # jax.random.key_data, see `make_train_step`.
  evaluate: evaluator.Evaluator
  learning_rate: optax.Schedule
  batches: data_config.Batches
  saved: checkpoints.Checkpoints
  writer: records.Writer
  meter: throughput.Meter
  trace: profiling.StepTrace
  selection: selection.Selection
  on_first_step: Callable[[], None] | None = None
  _start: int = 0
  _warned: bool = False

  def run(self, state: train_state.TrainState) -> bool:
    """Runs from the state's step to the last one, or until told to stop.

    Returns:
      Whether the run has come to its end.
    """
    self._start = start = int(state.step)
    if start >= self.total_steps or self.selection.exhausted:
      logs.say(
        f'Nothing to do: the run is at step {start} of {self.total_steps}.'
      )
      return True
    if start == 0:
      self._evaluate(0, state)
    clock = records.Clock()
    train_step = in_flight = None
    with preemption.StopRequest() as stop, self.trace:
      interrupts.check()
      for step in range(start + 1, self.total_steps + 1):
        with clock.waiting():
          batch = next(self.batches)
        batch = partitioning.global_batch(batch, self.mesh)
        if train_step is None:
          train_step = self._compile(state, batch)
          if self.on_first_step is not None:
            self.on_first_step()
          clock = records.Clock()
        self.trace.before(step, in_flight)
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
          state, sums = train_step(state, batch, self.random_key)
        # One step ahead of the device and no further: more would only delay
        # the answer to a signal and blur what is waited for.
        jax.block_until_ready(in_flight)
        in_flight = sums
        with clock.paused():
          self.trace.after(step, in_flight)
        # Asked once: a signal that comes while this step is being saved is
        # answered after the next one.
        stopping = stop.reached(step)
        state = self._after(step, state, batch, clock, stopping)
        if stopping:
          self.saved.wait()
          logs.say(
            f'{stop.signal_name}: saved step {step} and stopped. The same '
            'command goes on from there.'
          )
          return False
        if self.selection.exhausted:
          break
    return True

  def _compile(self, state: train_state.TrainState, batch: Mapping) -> Callable:
    """Compiles the step, which for a large model takes minutes."""
    begun = time.perf_counter()
    compiled = self.train_step.lower(state, batch, self.random_key).compile()
    return_free_memory()
    hosts.meet()
    logs.say(
      f'Compiled the training step in {time.perf_counter() - begun:.1f} s.'
    )
    return compiled

  def _after(
    self, step: int, state: train_state.TrainState, batch, clock, stop: bool
  ) -> train_state.TrainState:
    """What is due after a step: a record, an evaluation, a checkpoint."""
    last = step == self.total_steps
    log = last or step % self.log_period == 0
    evaluate = last or step % self.evaluation_period == 0
    save = last or stop or step % self.checkpoint_period == 0
    if log or save or evaluate:
      self._check_sums(step, state)
    if log:
      state = self._record(step, state, batch, clock)
    with clock.paused():
      if evaluate and self._evaluate(step, state):
        save = True
      if save:
        self._check_values(step, state)
        # What a restart from this step must find.
        self.writer.flush()
        self.saved.save(step, state, self.batches)
    return state

  def _check_sums(self, step: int, state: train_state.TrainState) -> None:
    """Stops when the loss or the gradient was not a number."""
    loss, norm = float(state.sums['loss']), float(state.sums['gradient_norm'])
    if not (math.isfinite(loss) and math.isfinite(norm)):
      raise self._not_finite(
        f'The loss or its gradient is not finite at step {step} (summed loss '
        f'{loss}, summed gradient norm {norm})',
        step,
      )

  def _check_values(self, step: int, state: train_state.TrainState) -> None:
    """Stops before anything that is not a number is saved.

    The loss is that of before the step's update.
    """
    bad = int(not_finite(state))
    if bad:
      raise self._not_finite(
        f'The update of step {step} made {bad} array(s) of the parameters or '
        'of the optimizer not finite',
        step,
      )

  def _not_finite(self, what: str, step: int) -> errors.UserError:
    return errors.UserError(
      f'{what}, so the run stops, and this step is not saved. '
      f'{self._last_good(step)} Try a lower learning rate, above all for the '
      'coefficients (COEFFICIENT_LEARNING_RATE), or float32.'
    )

  def _last_good(self, step: int) -> str:
    """What there is to go on from."""
    steps = self.saved.all_steps()
    if not steps:
      return 'There is no checkpoint yet.'
    *older, newest = steps
    text = f'The checkpoint of step {newest} is the last one and is kept.'
    if self._start and step - self._start <= _SOON:
      text += (
        f' It came {step - self._start} step(s) after the checkpoint of step '
        f'{self._start} was restored, so the fault may lie before that one: '
      )
      text += (
        f'move {newest} away to go on from step {older[-1]} (there are '
        f'{", ".join(map(str, older))}).'
        if older
        else 'there is no older one.'
      )
    return text

  def _record(
    self, step: int, state: train_state.TrainState, batch, clock
  ) -> train_state.TrainState:
    """Writes the record since the one before and starts the next."""
    sums = jax.device_get(state.sums)
    measured = clock.read(float(sums['tokens'] / sums['steps']))
    values = records.per_token(sums) | {
      'gradient_norm': float(sums['gradient_norm'] / sums['steps']),
      'learning_rate': float(self.learning_rate(step - 1)),
      **measured,
      **self.meter.read(step, time.time(), batch, measured),
    }
    self.writer.write(step, 'train', values)
    logs.say(records.progress_line(step, self.total_steps, values))
    zeros = {
      # Not device_put, which asks all hosts whether they put the same.
      name: jax.make_array_from_callback(
        (), leaf.sharding, lambda _: np.zeros((), np.float32)
      )
      for name, leaf in state.sums.items()
    }
    return state.replace(sums=zeros)

  def _evaluate(self, step: int, state: train_state.TrainState) -> bool:
    """Writes a record; whether the step must be saved, whatever the period."""
    values = self.evaluate(state.params)
    if values and not math.isfinite(values['loss']):
      raise errors.UserError(
        f'The held-out loss is {values["loss"]} at step {step}, so the run '
        f'stops. {self._last_good(step)}'
      )
    if not values:
      return False
    self.writer.write(step, 'eval', values)
    logs.say(f'held out at step {step}: {evaluator.evaluation_line(values)}')
    self._warn_of_few(int(values['target_tokens']))
    best = self.selection.add(step, values)
    if best:
      self.saved.keep(step)
    if self.selection.exhausted:
      logs.say(
        f'{self.selection.metric} was best at step {self.selection.best_step} '
        f'and not since, in {self.selection.since} evaluations: stopped.'
      )
    return best or self.selection.exhausted

  def _warn_of_few(self, tokens: int) -> None:
    """Says once that a held-out split is too small to tell anything."""
    few = data_config.few_target_tokens(tokens)
    if few and not self._warned:
      self._warned = True
      logs.say(f'WARNING: {few}')


@jax.jit
def not_finite(state: train_state.TrainState) -> Int[Array, '']:
  """How many arrays of parameters and optimizer state have a NaN or inf."""
  arrays = [
    leaf
    for leaf in jax.tree.leaves((state.params, state.opt_state))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return sum((~jnp.all(jnp.isfinite(x)) for x in arrays), start=jnp.int32(0))


def return_free_memory() -> None:
  """Gives the compiler's freed memory back to the system, where libc can.

  Otherwise it stays with the process, and the first step's buffers come on
  top: tools/bench_train.py prints the peak.
  """
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).malloc_trim(0)
