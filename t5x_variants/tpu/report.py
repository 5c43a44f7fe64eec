"""What compiling a run for a slice told, as figures and as lines.

All byte counts are those of one JAX device, which is a chip, but for 7x where
it is half of one.
"""

import dataclasses

from t5x_variants import chips
from t5x_variants.tpu import compiling, memory, topologies

GIB = chips.GIB


def heads(of: topologies.Slice, aot: compiling.AotProgram) -> dict[str, object]:
  """What is known before anything is compiled."""
  plan, config = aot.plan, aot.plan.model.config
  chip, sizes = compiling.chip_of(aot), aot.sizes()
  return {
    'topology': of.name,
    'shape': of.shape,
    'chips': of.chips,
    'devices_per_chip': chip.devices,
    'mesh': [aot.mesh.shape['data'], aot.mesh.shape['model']],
    'parameter_partitioning_dims': plan.parameter_partitioning_dims,
    'batch_size': plan.batch_size,
    'lengths': list(plan.lengths),
    'num_microbatches': plan.num_microbatches,
    'remat_policy': config.remat_policy,
    'usable': chip.usable,
    'estimate': memory.estimate_of(aot).total,
    **dataclasses.asdict(sizes),
  }


def figures(
  aot: compiling.AotProgram, program: str, compiled: compiling.Compiled
) -> dict[str, object]:
  """One program's figures."""
  counted = None
  if program != 'decode':
    # Decoding stops when all is said, so that its work is not known.
    counted = dataclasses.asdict(compiling.model_flops(aot.plan, program))
  chip = compiling.chip_of(aot)
  return {
    'program': program,
    'usable': chip.usable,
    'chips': aot.mesh.size // chip.devices,
    'flops': counted,
    **dataclasses.asdict(compiled),
  }


def head_lines(head) -> list[str]:
  """The slice, the run, and what the state takes."""
  inputs, targets = head['lengths']
  spread = ', fully sharded' * (head['parameter_partitioning_dims'] == 2)
  two = ' (a device is half a chip)' * (head['devices_per_chip'] == 2)
  return [
    f'{head["topology"]}: {head["chips"]} chips, {head["shape"]}; from the TPU '
    'compiler, static: nothing is run',
    f'mesh data {head["mesh"][0]} x model {head["mesh"][1]}{spread}; '
    f'{head["batch_size"]} rows of {inputs} + {targets} tokens in '
    f'{head["num_microbatches"]} part(s); remat {head["remat_policy"]!r}',
    f'per device{two}:',
    f'  parameters       {_gib(head["params"])}   {head["count"]:,} in all',
    f'  optimizer state  {_gib(head["optimizer"])}',
    f'  estimated peak   {_gib(head["estimate"])}   of '
    f'{_gib(head["usable"]).strip()}',
  ]


def program_lines(found) -> list[str]:
  """One program's figures."""
  share = found['peak'] / found['usable']
  lines = [
    f'{found["program"]}:',
    f'  peak memory      {_gib(found["peak"])}   of '
    f'{_gib(found["usable"]).strip()} ({share:.0%})',
  ]
  if found['flops']:
    encoder, decoder = (
      found['flops'][side] / found['chips'] / 1e12
      for side in ('encoder', 'decoder')
    )
    lines.append(
      f'  model TFLOP      {encoder + decoder:8.3g}       a chip and step: '
      f'{encoder:.3g} for input tokens, {decoder:.3g} for targets'
    )
  for kind, size in found['moved'].items():
    lines.append(f'  {kind:16} {size / 1e6:8.2f} MB    moved, a step')
  if not found['moved']:
    lines.append('  nothing moves between devices')
  if found['unknown_loops']:
    lines.append(
      f'  of {found["unknown_loops"]} loop(s) one turn is counted: how many '
      'they take depends on the data'
    )
  lines.append(
    f'  compiled in      {found["compile_seconds"]:8.1f} s     after '
    f'{found["lower_seconds"]:.1f} s of tracing, on this machine'
  )
  return lines


def out_of_memory_report(
  aot: compiling.AotProgram, who: str, needed: int | None
) -> str:
  """That it does not fit, and the nearest settings with which it should."""
  chip = compiling.chip_of(aot)
  asks = f' {_gib(needed).strip()} are needed,' if needed else ''
  text = (
    f'DOES NOT FIT, says {who}:{asks} {_gib(chip.usable).strip()} are usable '
    'on a device.'
  )
  found = memory.suggestion(aot, needed)
  if found is None:
    return text + (
      ' No remat policy, number of microbatches, model axis or full sharding '
      'is enough on this slice by the estimate: take a larger slice or a '
      'smaller batch.'
    )
  return (
    f'{text}\nNearest settings that fit, by estimate '
    f'{_gib(found.memory.total).strip()}: '
    f'add {" ".join(found.flags)}'
  )


def _gib(size: int) -> str:
  return f'{size / GIB:8.3f} GiB'
