#!/usr/bin/env bash
# Everything CI runs: set-up, lint, format, types, tests.
#
#   bash tools/test.sh                       all of the default suite
#   bash tools/test.sh tests/model/test_mlp.py -x  what you name, with pytest's flags
#   bash tools/test.sh -m slow               the slow tests
#   bash tools/test.sh --tpu                 the kernels and a training step
#                                            through the TPU compiler,
#                                            which is installed (200 MB)
#   bash tools/test.sh --t5x                 t5x's launchers, which must be on
#                                            PYTHONPATH (docs/from_t5x.md)
#   bash tools/test.sh --hf                  exported models under transformers,
#                                            which is installed, with torch
#   bash tools/test.sh --torture             runs that are killed and damaged,
#                                            with the flags of tools/torture.py
#   PYTHON=python3.12 bash tools/test.sh     with another Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# What needs more than the tests' packages has a mark and an extra of its own,
# and runs in one process: the TPU compiler allows no second.
case ${1:-} in
  --tpu) shift; EXTRA=tpu; set -- -n 0 -m tpu_compiler "$@" ;;
  --t5x) shift; EXTRA=t5x; set -- -n 0 -m t5x -s "$@" ;;
  --hf) shift; EXTRA=hf; set -- -n 0 -m hf "$@" ;;
esac
source tools/setup_venv.sh
# No accelerator is asked for, so none is looked for.
export JAX_PLATFORMS=cpu

if [ "${1:-}" = --torture ]; then
  shift
  exec "$VENV_PYTHON" tools/torture.py "$@"
fi
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m mypy
# Compiling, which most of the time goes into, keeps one core busy.
exec "$VENV_PYTHON" -m pytest --numprocesses=2 --dist=worksteal "$@"
