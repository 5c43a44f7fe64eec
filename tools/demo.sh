#!/usr/bin/env bash
# Pretrains the tiny model with SwiGLU on the text of Python's own library and
# draws its curves: nothing is downloaded but packages from PyPI. About two
# minutes on two CPU cores, set-up excluded.
#
#   bash tools/demo.sh               the run lies in runs/demo-swiglu
#   VARIANT=rational bash tools/demo.sh    any file of gin/variants
#   STEPS=100 bash tools/demo.sh     shorter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_venv.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

variant=${VARIANT:-swiglu}
run=${RUN:-runs/demo-$variant}
"$VENV_PYTHON" -m t5x_variants.train \
  --gin_file=gin/models/tiny.gin \
  --gin_file="gin/variants/$variant.gin" \
  --gin_file=gin/data/prepared.gin \
  --gin_file=gin/runs/pretrain.gin \
  --gin.MODEL_DIR="'$run'" \
  --gin.TRAIN_STEPS="${STEPS:-500}" \
  --gin.EVAL_PERIOD=50 --gin.CHECKPOINT_PERIOD=100
"$VENV_PYTHON" -m t5x_variants.plot loss "$run" --whole --train \
  -o "$run/loss.png"
"$VENV_PYTHON" -m t5x_variants.plot activations "$run" \
  -o "$run/activations.png"
"$VENV_PYTHON" - "$run" <<'PYTHON'
import sys

from t5x_variants.run_dir import records as metrics

run = sys.argv[1]
held_out = metrics.read(run, 'eval')
print(
    f'\nHeld-out loss: {held_out[0]["loss"]:.3f} nats per target token before '
    f'training, {held_out[-1]["loss"]:.3f} after {held_out[-1]["step"]} steps.'
    f'\nPlots:         {run}/loss.png and {run}/activations.png'
    f'\nTensorBoard:   {run} (pip install tensorboard; '
    f'tensorboard --logdir {run})'
    f'\nRecords:       {run}/metrics.jsonl, {run}/config.gin, '
    f'{run}/model-info.txt'
)
PYTHON
