"""A GEGLU model goes on with rational gates, as docs/weights.md has it."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_geglu_goes_on_as_rational_glu():
  done = subprocess.run(
    [sys.executable, 'tools/warm_start.py'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = re.findall(r'loss of \w+ [^:]*: ([\d.]+)', done.stdout)
  before, start, end = map(float, found)
  assert abs(start - before) < 1e-3
  assert end < start - 0.005
  change, usual = re.search(
    r'mean square (\S+), of logits of root mean square (\S+)', done.stdout
  ).groups()
  assert 0 < float(change) < 1e-3 * float(usual)
