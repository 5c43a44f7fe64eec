"""What input costs: examples per second and core, from seqio and prepared.

  python tools/bench_data.py [--model t5_1_1_base] [--mfu 0.5]

The work: the embedded corpus with the byte vocabulary, packed, in random
order, 512 input and 114 target tokens, batch 128. An example is a full chunk
of 568 tokens. Each path is timed in a process of its own: CPU seconds of all
its threads over batches that follow a warm-up, so that imports, opening and
the first shuffle are apart. Then the arithmetic of how many cores feed eight
chips of a TPU v5e at the given share of their peak.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTHS = {'inputs': 512, 'targets': 114}
BATCH = 128
PEAK_FLOPS = 197e12  # One v5e chip, bfloat16.
CHIPS = 8


def open_batches(path: str):
  """Batches of one of the two paths, without end."""
  from t5x_variants.data import config
  from t5x_variants.data.prepared import embedded

  options = {'split': 'train', 'batch_size': BATCH}
  if path == 'prepared':
    folder = embedded.prepared(LENGTHS)
    return config.DatasetConfig(
      None, LENGTHS, prepared=folder, **options
    ).open()
  from t5x_variants.data.tasks import registry as tasks
  from t5x_variants.data.text import corpora, vocabularies

  task = tasks.span_corruption(
    corpora.embedded(), vocabularies.byte(), documents_joined=16
  )
  return config.DatasetConfig(task, LENGTHS, **options).open()


def measure(path: str, batches: int) -> None:
  """Prints imports' and opening's CPU seconds, and examples per CPU second."""
  iterator = open_batches(path)
  for _ in range(5):
    next(iterator)
  fixed = time.process_time()
  examples = tokens = 0
  for _ in range(batches):
    batch = next(iterator)
    examples += int(batch['encoder_segment_ids'].max(1).sum())
    tokens += int((batch['encoder_input_tokens'] > 0).sum())
  seconds = time.process_time() - fixed
  print(fixed, examples / seconds, tokens / examples)


def flops_per_example(model: str) -> float:
  """6 FLOPs for each parameter and token that passes it, attention left out."""
  from t5x_variants.cli import gin_utils
  from t5x_variants.model import parameters

  files = [f'gin/models/{model}.gin', 'gin/variants/geglu.gin']
  gin_utils.parse(files, ['DROPOUT_RATE=0.0'])
  shapes, _ = parameters.shapes_and_axes(gin_utils.macro('MODEL'))
  encoder = parameters.count(shapes['encoder'])
  decoder = parameters.count(shapes['decoder'])
  total = LENGTHS['inputs'] * encoder + LENGTHS['targets'] * decoder
  print(
    f'{model}: 6 x (512 tokens x {encoder:,} parameters of the encoder + 114 x'
    f' {decoder:,} of the decoder, its logits included) = {6 * total:.3g}'
    ' FLOPs an example'
  )
  return 6.0 * total


def main() -> None:
  """Times both paths, each in a process, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='t5_1_1_base')
  parser.add_argument('--mfu', type=float, default=0.5, help='share of peak')
  parser.add_argument('--batches', type=int, default=150)
  parser.add_argument('--measure', choices=('seqio', 'prepared'))
  arguments = parser.parse_args()
  if arguments.measure:
    measure(arguments.measure, arguments.batches)
    return
  open_batches('prepared')  # Prepared before it is timed.
  found = {}
  for path in ('seqio', 'prepared'):
    done = subprocess.run(
      [
        sys.executable,
        __file__,
        f'--measure={path}',
        f'--batches={arguments.batches}',
      ],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    fixed, found[path], tokens = map(float, done.stdout.split())
    print(
      f'{path:9s} {found[path]:8,.0f} examples per second and core'
      f' ({tokens:.0f} input tokens each), {fixed:5.1f} CPU-s before the first'
    )
  needed = CHIPS * PEAK_FLOPS * arguments.mfu
  needed /= flops_per_example(arguments.model)
  print(
    f'v5e-{CHIPS} at {arguments.mfu:.0%} of {CHIPS} x {PEAK_FLOPS:.3g} FLOP/s'
    f' takes {needed:,.0f} examples a second'
  )
  for path, rate in found.items():
    print(f'{path:9s} {needed:,.0f} / {rate:,.0f} = {needed / rate:.2f} cores')


if __name__ == '__main__':
  main()
