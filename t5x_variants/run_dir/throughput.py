"""How well a run uses its machines: MFU, tokens a chip, goodput.

  MFU = FLOPs of a step / (seconds of a step * devices * a device's peak)

with the FLOPs and peaks of `flops`: of the matmuls that the model means, over
the rows as they are packed, in bfloat16. What is computed twice to save memory
is counted once, so that remat lowers MFU. A device without a row in that table
(a CPU, a GPU) has no MFU.

  goodput = seconds of the steps that count / seconds since the first start

Each step up to now counts once, at the seconds a step of its record took (see
`records.Clock`): compilation, evaluation, checkpoints, the hours between a stop
and a restart, and steps that a restart repeats are what goodput loses. The wait
for data is in a step's seconds, and has its own number, `data_wait`.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax

from t5x_variants import chips
from t5x_variants.model import flops, network


@dataclasses.dataclass
class Goodput:
  """What of a run's time its steps took, over all restarts.

  Attributes:
    started: Unix time of the run's first start.
    step: the last step that counts.
    productive: seconds of the steps up to it.
  """

  started: float
  step: int = 0
  productive: float = 0.0

  @classmethod
  def of(
    cls, earlier: Iterable[Mapping], started: float, first_step: int
  ) -> 'Goodput':
    """Goes on from what earlier starts recorded.

    Args:
      earlier: some of their records, see `records.RunWriter`: any of them
        tells when the run began, and the last training record up to
        `first_step` how long the steps up to it took.
      started: Unix time of this start.
      first_step: the step that this start goes on from.
    """
    earlier = list(earlier)
    began = (r['time'] - r.get('wall_seconds', 0.0) for r in earlier)
    goodput = cls(min(began, default=started))
    for record in earlier:
      if record['split'] == 'train' and record['step'] <= first_step:
        wall = record.get('wall_seconds', 0.0)
        goodput.step = record['step']
        goodput.productive = record.get('goodput', 0.0) * wall
    return goodput

  def count(self, step: int, seconds_per_step: float) -> None:
    """Counts the steps up to `step`, of which one took so many seconds."""
    self.productive += (step - self.step) * seconds_per_step
    self.step = step

  def read(self, now: float) -> dict[str, float]:
    """The share, and the seconds it is a share of, at Unix time `now`."""
    wall = max(now - self.started, self.productive)
    share = self.productive / wall if wall else 0.0
    return {'goodput': share, 'wall_seconds': wall}


class Meter:
  """Adds to a record what only the model and the mesh tell."""

  def __init__(
    self,
    config: network.T5Config,
    mesh: jax.sharding.Mesh,
    goodput: Goodput,
  ):
    """Takes the network's sizes, its devices, and the run's past."""
    self._config = config
    self._devices = mesh.size
    self._kind = mesh.devices.flat[0].device_kind
    self._goodput = goodput

  def read(
    self, step: int, now: float, batch: Mapping, measured: Mapping[str, float]
  ) -> dict[str, float]:
    """What the record of a step has besides.

    Args:
      step: the last step of the record.
      now: Unix time.
      batch: t5x's features, each `[rows, length]`, rows over all devices.
      measured: what `records.Clock.read` returned.

    Returns:
      tokens_per_second_per_chip, goodput, wall_seconds; and mfu on a known TPU.
    """
    rows, inputs_length = batch['encoder_input_tokens'].shape
    targets_length = batch['decoder_target_tokens'].shape[1]
    work = flops.train_step(self._config, rows, inputs_length, targets_length)
    seconds = measured['seconds_per_step']
    chip = chips.CHIPS.get(self._kind)
    number = self._devices / (chip.devices if chip else 1)
    self._goodput.count(step, seconds)
    values = {
      'tokens_per_second_per_chip': measured['tokens_per_second'] / number,
      **self._goodput.read(now),
    }
    used = flops.mfu(work.total, seconds, self._devices, self._kind)
    return values if used is None else {'mfu': used, **values}
