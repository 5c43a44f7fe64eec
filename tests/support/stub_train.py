"""Stands in for t5x_variants.train in tests of sweeps: quick, and counted.

Takes MODEL_DIR, TRAIN_STEPS and the like from the command line, makes a step
every STEP_SECONDS with a checkpoint each, resumes, saves on SIGTERM, fails
where MODEL_DIR has FAIL in it, and writes what it does into LEDGER.
"""

import json
import os
import pathlib
import re
import signal
import sys
import time


def main():
  values = dict(re.findall(r"--gin\.(\w+)='?([^'\n]*)", '\n'.join(sys.argv)))
  run = pathlib.Path(values['MODEL_DIR'])
  total = int(values['TRAIN_STEPS'])
  variant = re.search(r'variants/(\w+)\.gin', ' '.join(sys.argv))[1]
  checkpoints = run / 'checkpoints'
  checkpoints.mkdir(parents=True, exist_ok=True)
  start = max([int(entry.name) for entry in checkpoints.iterdir()], default=0)
  note(f'pid {run} {os.getpid()}')
  note(f'start {run} {start}')
  if os.environ.get('FAIL') and re.search(os.environ['FAIL'], str(run)):
    print('error: told to fail')
    raise SystemExit(3)
  stopped = []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
  gated = variant in ('swiglu', 'geglu')
  (run / 'config.gin').write_text(
    f"ACTIVATION = '{'swish' if gated else variant}'\nGATED = {gated}\n"
    f'RANDOM_SEED = {values["RANDOM_SEED"]}\nTRAIN_STEPS = {total}\n'
  )
  for step in range(start + 1, total + 1):
    time.sleep(float(os.environ.get('STEP_SECONDS', 0)))
    note(f'step {run} {step}')
    with (run / 'metrics.jsonl').open('a') as file:
      file.write(
        json.dumps({'step': step, 'split': 'eval', 'loss': 1.0}) + '\n'
      )
    (checkpoints / str(step)).mkdir(exist_ok=True)
    if stopped:
      note(f'saved {run} {step}')
      return
  note(f'end {run} {total}')


def note(line):
  with open(os.environ['LEDGER'], 'a') as file:
    file.write(line + '\n')


if __name__ == '__main__':
  main()
