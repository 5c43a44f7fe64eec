#!/usr/bin/env bash
# The low-data experiment in one command: pretrains the tiny model in five
# variants, fine-tunes each on 100 examples of two tasks with five seeds, tests,
# prints the report and writes it with the machine's size into
# docs/experiments.md. Nothing is downloaded but packages from PyPI. Stopped, the
# same command goes on.
#
#   bash tools/experiment.sh                          runs in runs/low_data
#   RUNS=DIR OUTPUT=FILE bash tools/experiment.sh     elsewhere
#   bash tools/experiment.sh --gin.SEEDS='[0, 1]'     values of the sweep's file
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_venv.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

runs=${RUNS:-runs/low_data}
output=${OUTPUT:-docs/experiments.md}
cores=$("$VENV_PYTHON" -c 'import os; print(len(os.sched_getaffinity(0)))')
mkdir -p "$runs"

# What failed is 'not run' in the report; 1 says that something did.
status=0
"$VENV_PYTHON" -m t5x_variants.sweep --gin_file=gin/sweeps/low_data.gin \
  --gin.SWEEP_DIR="'$runs'" --processes="$cores" "$@" 2>&1 \
  | tee -a "$runs/sweep.log" || status=$?
if ((status > 1)); then exit "$status"; fi

report() {
  "$VENV_PYTHON" -m t5x_variants.report "$runs/$1" --baseline=gelu \
    --title="$2"
}
{
  cat <<'TEXT'
# Experiments

## Five variants on 100 examples, at toy scale

```
bash tools/experiment.sh
```

pretrains the tiny model (0.9 M parameters, bytes) once in each variant on the
text of Python's own library, fine-tunes it by RAFT's low-data protocol (100
examples to train on, 100 to choose the checkpoint by, drawn by the seed and the
same for all variants) and tests it on examples that no seed trains on. This
page is what it wrote. The settings are in `gin/sweeps/low_data.gin`:

- `embedded_sentences`: is this sentence from asyncio or from importlib? Half of
  the test sentences are of either, so guessing has an accuracy of 50.
- `embedded_questions`: what does this function return? A span of its docstring,
  judged as SQuAD is.

How these are made is said in `t5x_variants/data/text/embedded_tasks.py`. It is a
test of the machinery at a scale at which a paper's findings need not hold. There
is one pretraining a variant: a difference between variants is also one between
these very pretrainings, which the intervals do not cover; nor do they cover the
choice of the few hundred test examples. The learning rates were chosen with GELU.

TEXT
  report finetune 'Fine-tuned: test examples, per cent'
  echo
  report pretrain 'Pretrained: held-out loss, nats per target token'
  echo
  "$VENV_PYTHON" - "$runs/sweep.log" <<'PYTHON'
import os
import pathlib
import platform
import re
import sys

import jax

from t5x_variants.data.text import embedded_tasks
from t5x_variants.data.tasks import metrics as scores

answers = [answer for *_, answer in embedded_tasks.returned()['validation']]
always = scores.squad([[answer] for answer in answers], ['True'] * len(answers))
print(
  f'To answer every question with True would have an exact match of '
  f'{always["exact_match"]:.2f} and an F1 of {always["f1"]:.2f}.\n'
)

log = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')
spent = re.findall(r'^(\d+) s, (\d+) CPU seconds', log, re.MULTILINE)
seconds, cpu = (sum(map(int, column)) for column in zip(*spent))
cores = len(os.sched_getaffinity(0))
memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
sittings = f' in {len(spent)} sittings' if len(spent) > 1 else ''
print(
  f'Machine: {cores} CPU cores, {memory:.0f} GiB of memory; Python '
  f'{platform.python_version()}, jax {jax.__version__}. It took '
  f'{seconds / 60:.0f} minutes{sittings} and {cpu:,} CPU seconds.'
)
PYTHON
} > "$runs/report.md"
cp "$runs/report.md" "$output"
cat "$runs/report.md"
exit "$status"
