"""Prints tables of what runs reached, as Markdown, next to the papers' numbers.

  python -m t5x_variants.report runs/low_data/finetune --baseline=relu
  python -m t5x_variants.report runs/glu --table=glu_1 -o table1.md

The arguments are run directories, or folders that contain some. Rows are
variants, columns are tasks and their metrics. Runs in which a named part is
frozen (the arms of gin/runs/low_data.gin) have rows of their own. A run's
number is that of its 'test' record; where no run of a column has one, it is
the best of its 'eval' records after step 0 (the lowest loss, the highest of
any other metric). The command reads metrics.jsonl and config.gin. A run's task
is the name of the folder above the run's, as sweeps arrange them.

A cell is the mean over seeds, the sample standard deviation s and the number
of seeds n. Below it is the difference to the baseline, d = x - x_baseline,
taken seed by seed over the seeds that both have: mean(d), and the interval

  mean(d) -+ t(0.975, n - 1) s(d) / sqrt(n)

of Student's t distribution, which covers the expected difference in 95 % of
repetitions where d is about normal. It is not corrected for how many
differences a table has, and it knows only the variation that the seeds have.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from t5x_variants.cli import gin_utils

flags.DEFINE_string('baseline', None, 'A variant; without it, the first row.')
flags.DEFINE_multi_string(
  'table',
  [],
  'A table of the papers: glu_1 to glu_4 or raft_low_data; several times for '
  'several. Without it, the table of what the runs have.',
)
flags.DEFINE_string('title', 'Runs', 'The title of that table.')
flags.DEFINE_string(
  'output', None, 'The file to write in place of printing.', short_name='o'
)
FLAGS = flags.FLAGS


def main(runs: Sequence[str]) -> None:
  """Reads the runs and prints or writes the tables."""
  from t5x_variants import logs
  from t5x_variants.analysis import pages, tables

  logs.quiet()
  text = tables.report(runs, FLAGS.table, FLAGS.baseline, FLAGS.title)
  if FLAGS.output:
    pages.write(pathlib.Path(FLAGS.output), text)
  else:
    print(text, end='')


if __name__ == '__main__':
  gin_utils.run(main, takes='RUN ...')
