"""One process of a small run on several, which notes what it read and found.

tests/distributed/test_hosts.py runs it by tools/forked.py: the module, a JSON
object, and flags of `cli.host_flags`. Signals come at a step of its choice, in
the process of its choice.
"""

import hashlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import optax
import small_run
from absl import flags

from t5x_variants import errors, logs
from t5x_variants.cli import gin_utils, host_flags
from t5x_variants.data import config as data_config
from t5x_variants.distributed import hosts, partitioning
from t5x_variants.run_dir import records

PERIOD = 4  # steps between checkpoints


def main() -> None:
  logs.quiet()
  options = json.loads(flags.FLAGS.options)
  # Before JAX is asked for devices; a fork has it imported already.
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={options["devices"]} '
    '--xla_backend_optimization_level=0'
  )
  os.environ.update(options['environment'])
  with hosts.joined(flags.FLAGS):
    import jax

    train(options, jax.process_index())


def train(options, rank):
  notes = pathlib.Path(options['notes'], f'{rank}.jsonl').open('a')  # noqa: SIM115

  def note(**values):
    notes.write(json.dumps(values) + '\n')
    notes.flush()

  class Rows:
    """Batches of which every row is noted; a signal may come with one."""

    def __init__(self, batches, step=0):
      self.batches, self.step = batches, step
      self.vocab_size = batches.vocab_size

    def __iter__(self):
      return self

    def __next__(self):
      batch = next(self.batches)
      self.step += 1
      rows = np.concatenate([batch[name] for name in sorted(batch)], axis=1)
      note(
        step=self.step,
        rows=[hashlib.md5(row.tobytes()).hexdigest() for row in rows],
      )
      if options.get('signal') and [rank, self.step] == options['at']:
        wait_for_checkpoint(options['model_dir'], self.step)
        os.kill(os.getpid(), options['signal'])
      if options.get('wrong') == [rank, self.step]:
        raise errors.UserError('the data has come to an end')
      return batch

    def save(self, directory):
      self.batches.save(directory)
      pathlib.Path(directory, 'step').write_text(str(self.step))

    def restore(self, directory):
      self.batches.restore(directory)
      self.step = int(pathlib.Path(directory, 'step').read_text())

  class Noting(data_config.DatasetConfig):
    def open(self, *share):
      note(share=share)
      return Rows(super().open(*share))

  record = records.NoWriter.write

  def write(self, step, split, values):
    note(split=split, at=step, **values)
    record(self, step, split, values)

  records.NoWriter.write = records.RunWriter.write = write
  if rank == 0:
    records.RunWriter.write = lambda *args, old=RUN_WRITE: (
      write(*args),
      old(*args),
    )[1]
  data = {'prepared': options['data'], 'batch_size': 8}
  training = {
    'mixture_or_task_name': None,
    'task_feature_lengths': None,
    'split': 'train',
  }
  small_run.VOCAB = 384
  small_run.run(
    pathlib.Path(
      options.get('model_dir_of', {}).get(str(rank)) or options['model_dir']
    ),
    options['steps'],
    Noting(**training | data),
    activation=options['activation'],
    eval_dataset=data_config.DatasetConfig(
      **training | data | {'split': 'validation', 'num_epochs': 1}
    ),
    # A small program: compiling it is most of what a process costs.
    dropout_rate=0.0,
    optimizer=lambda axes, rate: optax.adam(1e-2),
    mesh=partitioning.make_mesh(options.get('model_axis', 1)),
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      options.get('dims', 1)
    ),
    periods=small_run.periods(log=1, eval=6, eval_steps=2, checkpoint=PERIOD),
  )


def wait_for_checkpoint(model_dir, step):
  """Until the last one due before a step, saved in the background, is whole."""
  last = (step - 1) // PERIOD * PERIOD
  while last and not pathlib.Path(model_dir, f'checkpoints/{last}').is_dir():
    time.sleep(0.05)


RUN_WRITE = records.RunWriter.write

if __name__ == '__main__':
  sys.argv.insert(1, '--options')
  flags.DEFINE_string('options', None, 'JSON.')
  host_flags.define_flags()
  gin_utils.run(main)
