"""What google-research/t5x takes from here, for its gin files below gin/t5x/.

t5x trains `network.Transformer` as it stands; these functions fill what its
own defaults leave open:

  mlp_activations   any activation inside t5x's own networks, one set of
                    coefficients per layer
  factor_rules      Adafactor's rules, with an error that says what to add
  optimizer         Adafactor with a group of its own for learned coefficients
  model_dir         refuses a MODEL_DIR that holds another run
  checkpoint        refuses a checkpoint of another model
  summarize_config  writes config.gin and keeps the earlier one
  submesh           the devices that share one copy of the parameters, where
  num_partitions    t5x has no default mesh or ignores the size asked for

t5x is not on PyPI and never needed to import this module.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util
from jaxtyping import Array, Float

from t5x_variants import activations, errors, paths
from t5x_variants.model import mlp
from t5x_variants.run_dir import changes

FACTORS = ('row', 'column', 'batch', 'none')


def mlp_activations(
  activation, gated: bool
) -> tuple[Callable[[Array], Array] | str, ...]:
  """An activation for `mlp_activations` of t5x's T5Config.

  Args:
    activation: a name of the activation table, or a record of it.
    gated: whether a linear branch is multiplied in.

  Returns:
    t5x's activations of the block's branches: a function that t5x calls inside
    its block, and 'linear' when gated. The function builds a Flax module each
    time, so that each layer has coefficients of its own (a module made once
    would give all layers one set); they stand at `mlp/activation/<name>`, as
    in our block.
  """
  record = activations.get(activation)
  if record.perturb is not None:
    raise errors.UserError(
      f'The activation {record.name!r} draws noise in training only, and '
      "t5x's own network does not tell its activations when that is: take "
      'another version, or our network by gin/t5x/model.gin.'
    )

  def apply(z: Float[Array, '... F']) -> Float[Array, '... F']:
    coefficients = {}
    if record.init():
      coefficients = mlp.Coefficients(record, name='activation')()
    return record.fn(z, coefficients)

  return (apply, 'linear') if gated else (apply,)


class _FactorRules(dict):
  """Rules that say what to do where there is none."""

  def __missing__(self, axis):
    raise errors.UserError(
      f'Adafactor has no factor rule for the parameter axis {axis!r}. '
      "Coefficients of an activation take the axis 'mlp_activations', which "
      'has one; for an axis of your own give one in gin: '
      f"for_t5x.factor_rules.more = {{{axis!r}: 'none'}} (or 'row', 'column', "
      f"'batch'). Axes with a rule: {', '.join(sorted(self))}."
    )


def factor_rules(more: Mapping[str, str] | None = None) -> Mapping:
  """t5x's factor rules of Adafactor, by logical axis.

  Args:
    more: rules for axes of your own, each 'row', 'column', 'batch' or 'none'.

  Returns:
    What `adafactor.Adafactor` takes as `logical_factor_rules`.
  """
  from t5x import adafactor

  more = dict(more or {})
  for axis, factor in more.items():
    if factor not in FACTORS:
      raise errors.UserError(
        f'The factor rule of the axis {axis!r} is {factor!r}: use one of '
        f'{list(FACTORS)}.'
      )
  return _FactorRules(dict(adafactor.standard_logical_factor_rules()) | more)


def optimizer(weights, coefficients=None):
  """t5x's optimizer, with a group of its own for the learned coefficients.

  Args:
    weights: t5x's Adafactor for all other parameters. They train exactly as
      they would with it alone, except that a global_norm_clip_threshold then
      compares with their norm, without the coefficients' share.
    coefficients: the Adafactor for the parameters of modules that are named
      `activation`, such as `coefficient_adafactor(...)`. With None, `weights`
      trains these as well.

  Returns:
    t5x's MultiOptimizer of the two, or `weights` itself if `coefficients` is
    None. Its state has the names and shapes of one Adafactor's state, so that
    checkpoints are the same either way.

  Raises:
    errors.UserError: one of the two is not t5x's Adafactor. t5x's
      MultiOptimizer cannot save the state of any other optimizer.
  """
  from t5x import adafactor, optimizers

  if coefficients is None:
    return weights
  for rule in (weights, coefficients):
    if not isinstance(rule, adafactor.Adafactor):
      raise errors.UserError(
        f'for_t5x.optimizer combines Adafactors of t5x, not {rule!r}: give '
        '@adafactor.Adafactor(), or set OPTIMIZER to your own optimizer.'
      )

  def learned(path: str, _) -> bool:
    return '/activation/' in path

  def other(path: str, leaf) -> bool:
    return not learned(path, leaf)

  return optimizers.MultiOptimizer(
    [
      (traverse_util.ModelParamTraversal(other), weights),
      (traverse_util.ModelParamTraversal(learned), coefficients),
    ]
  )


def coefficient_adafactor(
  learning_rate: optax.Schedule,
  decay_rate: float = 0.8,
  logical_factor_rules: Mapping | None = None,
):
  """t5x's Adafactor with an absolute rate and a schedule of its own.

  Adafactor usually scales a step by the size of the parameter, so that a bias
  that starts at 0 would hardly move. Here the step is absolute. A layer's
  vector c with the gradient g changes at step t = 0, 1, ... by

    v <- beta_t v + (1 - beta_t) g^2      beta_t = 1 - (t + 1)^-decay_rate
    u  = g / sqrt(v)
    c <- c - learning_rate(t) * u / max(1, RMS(u))

  Args:
    learning_rate: the absolute step size as a function of the step. It takes
      the place of the rate of t5x's trainer.
    decay_rate: the exponent in beta_t.
    logical_factor_rules: see `factor_rules`, which is the default.

  Returns:
    The optimizer for the `coefficients` of `optimizer`.
  """
  from t5x import adafactor

  class OwnRate(adafactor.Adafactor):
    """Takes its rate from `learning_rate` and not from t5x's trainer."""

    def apply_gradient(self, hyper_params, params, state, grads):
      rate = learning_rate(state.step)
      return super().apply_gradient(
        hyper_params.replace(learning_rate=rate), params, state, grads
      )

  return OwnRate(
    multiply_by_parameter_scale=False,
    decay_rate=decay_rate,
    logical_factor_rules=logical_factor_rules or factor_rules(),
  )


def model_dir(path: str) -> str:
  """MODEL_DIR for t5x, which alone would continue any run as any other.

  Args:
    path: the run directory.

  Returns:
    The same path, absolute, because Orbax writes to no other.

  Raises:
    errors.UserError: the folder holds another run, see `check_same_run`.
  """
  from t5x import gin_utils

  check_same_run(path, gin_utils.get_gin_config_str())
  return str(paths.folder(path))


def check_same_run(model_dir: str, now: str) -> None:
  """Refuses to continue a run with another variant, model or task.

  Args:
    model_dir: a run directory, in which t5x has written config.gin, or a folder
      that does not exist yet.
    now: the text of the configuration that is about to run.

  Raises:
    errors.UserError: a setting has changed; the message names it.
  """
  roots = ('Transformer.config', 'MIXTURE_OR_TASK_NAME')
  if changed := _changed(model_dir, now, roots):
    raise errors.UserError(
      f'MODEL_DIR {model_dir} holds another run: {changed}. Give this run '
      'another MODEL_DIR, or set back what differs.'
    )


def checkpoint(path: str, partial: bool = False) -> str:
  """A checkpoint for t5x to restore, which must be of the configured model.

  Args:
    path: `MODEL_DIR/checkpoint_STEP`. Without a config.gin in MODEL_DIR there
      is nothing to compare with, and any checkpoint is accepted.
    partial: whether it may be of another variant or model.

  Returns:
    The same path, absolute, because Orbax reads no other.

  Raises:
    errors.UserError: the checkpoint is of another model.
  """
  if not isinstance(path, str):
    return path
  folder = paths.folder(path)
  if partial:
    return str(folder)
  from t5x import gin_utils

  now = gin_utils.get_gin_config_str()
  if changed := _changed(folder.parent, now, ('Transformer.config',)):
    raise errors.UserError(
      f'The checkpoint {path} is of another model: {changed}. Give the model '
      'and variant files that it was made with. Fine-tuning may start from '
      'another variant with --gin.INITIAL_CHECKPOINT_PARTIAL=True '
      '(docs/from_t5x.md).'
    )
  return str(folder)


def summarize_config(
  model_dir: str, summary_writer, step: int, total_steps: int | None = None
) -> None:
  """Writes config.gin as t5x does, and keeps the one that is there.

  An earlier config.gin that differs is renamed to config-STEP.gin.

  Args:
    model_dir: t5x's MODEL_DIR.
    summary_writer: as t5x passes it.
    step: the step that the run continues from, which is the STEP above.
    total_steps: the step that the run ends at. If `step` has reached it, no
      training follows, and config.gin stays as it is.
  """
  from t5x import gin_utils

  file = paths.folder(model_dir) / 'config.gin'
  if jax.process_index() == 0 and file.exists():
    if total_steps is not None and step >= total_steps:
      return
    earlier = file.read_bytes()
    if earlier != gin_utils.get_gin_config_str().encode():
      file.with_name(f'config-{step}.gin').write_bytes(earlier)
  gin_utils.summarize_gin_config(model_dir, summary_writer, step)


def _changed(run: str | os.PathLike, now: str, roots: tuple[str, ...]) -> str:
  """How the values that `roots` depend on differ from a run's config.gin."""
  file = paths.folder(run) / 'config.gin'
  if not file.exists():
    return ''
  before = file.read_bytes().decode('utf-8', 'replace')
  # t5x gives the configuration of its files, our trainer an operative one.
  fixed, _ = changes.between(
    before, now, roots, changes.FREE, macro_scopes=False
  )
  return '; '.join(fixed)


def num_partitions(model_axis_size: int = 1) -> int | None:
  """The size of the model axis where t5x makes a mesh of it; else None.

  That is on GPUs. On a TPU `submesh` says more. On a CPU t5x ignores this
  number and takes all devices of a process for the model axis, unless it is
  given a submesh.
  """
  devices = jax.devices()
  if devices[0].platform != 'gpu':
    return None
  _processes(model_axis_size, devices)
  return model_axis_size


def submesh(
  model_axis_size: int = 1, devices: Sequence | None = None
) -> tuple[int, int, int, int] | None:
  """The devices that share one copy of the parameters, as a block of the mesh.

  On a TPU these are chips (x, y, z) and cores: all cores of a chip first, then
  as near to a square or a cube of chips as the slice allows, because neighbours
  are fastest. It depends on the slice alone and so is right for every
  generation. On a CPU the first two numbers are processes and devices of each
  process; t5x reads no others there.

  Args:
    model_axis_size: devices that share one copy of the parameters.
    devices: of the whole slice; None: those of this program.

  Returns:
    `model_parallel_submesh` of t5x's partitioner; None on GPUs.

  Raises:
    errors.UserError: the devices cannot be divided so.
  """
  devices = jax.devices() if devices is None else devices
  if devices[0].platform == 'gpu':
    return None
  if devices[0].platform != 'tpu':
    processes = _processes(model_axis_size, devices)
    return processes, model_axis_size // processes, 1, 1
  bounds = tuple(
    1 + max(place)
    for place in zip(
      *((*device.coords, device.core_on_chip) for device in devices),
      strict=True,
    )
  )
  return _tile(model_axis_size, bounds)


def _processes(size: int, devices: Sequence) -> int:
  """The number of processes that a model axis of that size spans off a TPU."""
  processes = 1 + max(device.process_index for device in devices)
  each = len(devices) // processes
  sizes = {n: 1 for n in range(1, each + 1) if each % n == 0}
  sizes |= {n * each: n for n in range(1, processes + 1) if processes % n == 0}
  if not isinstance(size, int) or size not in sizes:
    raise errors.UserError(
      f'MODEL_AXIS_SIZE is {size!r}: {processes} process(es) with {each} '
      f'device(s) each take one of {sorted(sizes)}.'
    )
  return sizes[size]


def _tile(size: int, bounds: Sequence[int]) -> tuple[int, int, int, int]:
  """Cuts `size` devices out of a slice of (x, y, z, cores) devices."""
  chips, cores = list(bounds[:3]), bounds[3]
  best = [1, 1, 1, cores if size > 1 else 1]
  fitting: dict[int, Any] = {1 if size == 1 else cores: tuple(best)}
  while True:
    room = [a for a in range(3) if chips[a] % (2 * best[a]) == 0]
    if not room:
      break
    best[min(room, key=lambda a: best[a])] *= 2
    fitting[best[0] * best[1] * best[2] * best[3]] = tuple(best)
  if size not in fitting:
    raise errors.UserError(
      f'MODEL_AXIS_SIZE is {size}: a slice of {" x ".join(map(str, chips))} '
      f'chips with {cores} core(s) each takes one of '
      f'{sorted({1, *fitting})}.'
    )
  return fitting[size]
