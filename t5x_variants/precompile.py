r"""Compiles a run for a TPU slice, without a TPU.

  python -m t5x_variants.precompile --topology=v5e-256 \
    --gin_file=gin/models/t5_1_1_base.gin --gin_file=gin/variants/swiglu.gin \
    --gin_file=gin/tpu/v5e-256.gin --gin_file=gin/runs/precompile.gin

Prints what the TPU compiler says, and runs nothing. Exit status: 0 it fits; 1
it does not, and the nearest settings that should fit are printed; 2 a wrong
setting. It needs libtpu and no TPU. tools/tpu/slice_table.py fills the table of
docs/tpu.md with it.
"""

import json
import pathlib

import gin
from absl import flags

from t5x_variants import errors
from t5x_variants.cli import gin_utils

gin_utils.define_flags()
flags.DEFINE_string('topology', None, 'The slice, for example v5e-256.')
flags.DEFINE_string('record', None, 'A file for the figures as JSON.')
FLAGS = flags.FLAGS


def main() -> None:
  """Reads the gin files and compiles, or with --dry_run prints them."""
  import jax

  from t5x_variants import logs
  from t5x_variants.tpu import compiling, report

  logs.quiet()
  # No device is run on: one that is there stays free.
  jax.config.update('jax_platforms', 'cpu')
  if FLAGS.topology is None:
    raise errors.UserError(
      'Which slice? Add --topology=NAME, for example --topology=v5e-8.'
    )
  if FLAGS.record:
    _check_record(pathlib.Path(FLAGS.record))
  gin_utils.parse(FLAGS.gin_file, FLAGS.gin_bindings, FLAGS.gin_search_paths)
  plan = gin_utils.configured(compiling.Plan)()
  if FLAGS.dry_run:
    print(gin.config_str())
    print('# every macro has a value')
    return
  of, devices = compiling.open_slice(FLAGS.topology)
  aot = compiling.AotProgram(plan, devices)
  heads = report.heads(of, aot)
  print('\n'.join(report.head_lines(heads)), flush=True)
  if plan.model_axis_size is None and aot.plan.model_axis_size != 1:
    print(
      f'note: a batch of {plan.batch_size} rows needs MODEL_AXIS_SIZE='
      f'{aot.plan.model_axis_size} here; give it to training too.'
    )
  figures = dict(_compiled(aot, plan.programs))
  if FLAGS.record:
    pathlib.Path(FLAGS.record).write_text(
      json.dumps(heads | {'programs': figures}), encoding='utf-8'
    )


def _check_record(file: pathlib.Path) -> None:
  """Refuses a file that cannot be written, before minutes of compilation."""
  if file.is_dir() or not file.parent.is_dir():
    raise errors.UserError(
      f'--record={file} cannot be written: give a file in a folder that is '
      'there.'
    )


def _compiled(aot, programs):
  """Compiles and prints each program; yields its name and figures."""
  from t5x_variants.tpu import compiling, memory, report

  chip = compiling.chip_of(aot)
  estimate = memory.estimate_of(aot)
  if memory.clearly_too_large(estimate, chip):
    _does_not_fit(aot, 'the estimate, without compiling', estimate.total)
  for program in programs:
    try:
      compiled = aot.compile(program)
    except compiling.DoesNotFit as error:
      print(f'{program}: {error}')
      _does_not_fit(aot, 'the compiler', memory.asked_for(str(error)))
    found = report.figures(aot, program, compiled)
    print('\n'.join(report.program_lines(found)), flush=True)
    yield program, found


def _does_not_fit(aot, who: str, needed: int | None) -> None:
  """Prints the nearest settings that fit and ends with exit status 1."""
  from t5x_variants.tpu import report

  print(report.out_of_memory_report(aot, who, needed))
  raise SystemExit(1)


if __name__ == '__main__':
  gin_utils.run(main)
