"""The static figures of bench_ffn.py as a table and as pictures.

The last columns are the kernels' bytes and cycles in terms of XLA's best form
that stores as much for the backward pass, and the cycles in terms of XLA's
best form of all. Of XLA's range the lower end counts.
"""

import json
import pathlib
from typing import NamedTuple

import tpu_programs

from t5x_variants.analysis import pages, plots
from t5x_variants.kernels import dispatch

# What stores as much: x alone, or the outputs of the first matmuls too.
LIKE = {
  'pallas inputs': ('xla remat', 'xla inputs'),
  'pallas preactivations': ('xla dots', 'xla preactivations'),
}
HEAD = 'chip model block D F shards form forward-MB backward-MB MB x-floor '
HEAD += 'Mcycles matrix-unit saved-MB VMEM-MiB MB/XLA cycles/XLA cycles/best'
HEAD = [cell.replace('-', ' ') for cell in HEAD.split()]
COMMAND = 'tools/kernels/bench_ffn.py --all'


class Record(NamedTuple):
  """What is known of one form of one block on one chip."""

  chip: str
  model: str
  block: str
  d: int
  f: int
  shards: int
  form: str
  forward: tpu_programs.Cost
  backward: tpu_programs.Cost
  saved: int
  floor: int
  vmem: float | None

  @property
  def bytes(self) -> int:
    """Of both passes."""
    return self.forward.bytes + self.backward.bytes

  @property
  def cycles(self) -> tuple[float, float] | None:
    """The range of both passes; a kernel skips what a branch may skip."""
    if self.forward.low is None:
      return None
    low, high = (
      getattr(self.forward, end) + getattr(self.backward, end)
      for end in ('low', 'high')
    )
    return (low, low) if self.vmem else (low, high)


def table(records: list[Record]) -> str:
  """The table of one or more blocks, in Markdown."""
  return pages.markdown([HEAD, *(cells(record, records) for record in records)])


class Ratios(NamedTuple):
  """A record in terms of XLA's best forms; None where there is none.

  Attributes:
    bytes: of the best that stores as much.
    cycles: of the best that stores as much.
    best: cycles, of the best of all.
  """

  bytes: float | None = None
  cycles: float | None = None
  best: float | None = None


def ratios(record: Record, records: list[Record]) -> Ratios:
  """How a record compares with XLA's forms of the same block."""
  xla = [
    other
    for other in records
    if other[:6] == record[:6] and other.form not in LIKE
  ]
  others = [other for other in xla if other.form in LIKE.get(record.form, ())]
  if not others:
    return Ratios()
  found = Ratios(record.bytes / min(o.bytes for o in others))
  if record.cycles is None:
    return found
  low = record.cycles[0]
  found = found._replace(cycles=low / min(o.cycles[0] for o in others))
  # Both of XLA's kinds, or it is not its best.
  if {'xla remat', 'xla dots'} <= {other.form for other in xla}:
    found = found._replace(best=low / min(o.cycles[0] for o in xla))
  return found


def choices(records: list[Record]) -> list[list]:
  """The rows of dispatch.TABLE that follow; see there for the rule."""
  rows = []
  for record in records:
    if record.form not in LIKE:
      continue
    name, _, gate = record.block.partition(':')
    found, save = ratios(record, records), record.form.split()[1]
    ways = [(save, found.cycles)]
    if save == 'inputs':
      ways.append((None, found.best))
    rows += [
      [record.chip, name, gate == 'gated', save, record.d, record.f]
      for save, ratio in ways
      if ratio is not None and round(ratio, 3) <= dispatch.MARGIN
    ]
  return sorted(rows, key=str)


def cells(record: Record, records: list[Record]) -> list[str]:
  """A row of the table."""
  low, high = record.cycles or (None, None)
  cycles = share = '-'
  if low is not None:
    busy = record.forward.busy + record.backward.busy
    share = f'{busy / low:.0%}'
    cycles = f'{low / 1e6:.2f}'
    if high / low > 1.005:
      cycles += f' to {high / 1e6:.2f}'
  mega = [record.forward.bytes, record.backward.bytes, record.bytes]
  return [
    record.chip,
    record.model,
    record.block,
    *(str(n) for n in (record.d, record.f, record.shards)),
    record.form,
    *(f'{n / 1e6:.0f}' for n in mega),
    f'{record.bytes / record.floor:.2f}',
    cycles,
    share,
    f'{record.saved / 1e6:.0f}',
    '-' if record.vmem is None else f'{record.vmem:.0f}',
    *(
      '-' if ratio is None else f'{ratio:.3f}'
      for ratio in ratios(record, records)
    ),
  ]


def write(
  records: list[Record], folder: pathlib.Path, chosen: pathlib.Path
) -> None:
  """Writes kernels.md, its pictures, and the table of choices."""
  text = table(records)
  for chip in dict.fromkeys(record.chip for record in records):
    own = [record for record in records if record.chip == chip]
    plots.save(picture(own), folder / f'kernels-{chip}.png')
    text += f'\n\n![{chip}](kernels-{chip}.png)'
  pages.fill(folder / 'kernels.md', COMMAND, text)
  rows = ',\n'.join(f'  {json.dumps(row)}' for row in choices(records))
  chosen.write_text(f'[\n{rows}\n]\n', encoding='utf-8')


def picture(records: list[Record]):
  """Bars of bytes, and of cycles with their range, block by block."""
  forms = [form for pair in LIKE.items() for form in (pair[1][0], pair[0])]
  blocks = list(dict.fromkeys((r.model, r.block) for r in records))
  drawn = plots.figure(8, 1.2 + 0.62 * len(blocks))
  axes = drawn.subplots(1, 2, sharey=True)
  for at, block in enumerate(blocks):
    for index, form in enumerate(forms):
      own = [r for r in records if (r.model, r.block, r.form) == (*block, form)]
      for record in own:
        y = at + 0.19 * (index - 1.5)
        style = {'height': 0.17, 'color': plots.COLOURS[index]}
        axes[0].barh(y, record.bytes / 1e9, **style)
        if record.cycles:
          low, high = (end / 1e6 for end in record.cycles)
          axes[1].barh(y, low, **style)
          axes[1].plot([low, high], [y, y], color='black', linewidth=0.8)
  axes[0].set_yticks(range(len(blocks)), [' '.join(b) for b in blocks])
  axes[0].set_ylim(len(blocks) - 0.5, -0.5)
  axes[0].set_xlabel('HBM GB, forward and backward pass')
  axes[1].set_xlabel('modelled megacycles (line: to the upper end)')
  for index, form in enumerate(forms):
    axes[0].barh([0], [0], color=plots.COLOURS[index], label=form)
  title = f'{records[0].chip}; static, nothing was run'
  drawn.legend(loc='outside upper center', ncols=4, title=title)
  return drawn
