#!/usr/bin/env bash
# Stands in for uv on the hosts of tests/support/stand_in_gcloud.sh: the python that it
# installs counts steps in the bucket instead of training.
#
#   $CLOUD/refuse, $CLOUD/crash   the run ends with status 2, or 1
#   $CLOUD/last                   its last step
[ "$1" = venv ] || exit 0
mkdir -p .venv/bin
cat >.venv/bin/python <<'PYTHON'
#!/usr/bin/env bash
echo "$(basename "$HOME") $*" >>"$CLOUD/started"
trap 'echo "saved step $step"; exit 0' TERM
step=$(cat "$CLOUD/bucket/step" 2>/dev/null || echo 0)
echo "going on from step $step"
if [ -e "$CLOUD/refuse" ]; then echo 'error: BATCH_SIZE is 3'; exit 2; fi
if [ -e "$CLOUD/crash" ]; then echo 'Killed.'; exit 1; fi
while ((step < $(cat "$CLOUD/last"))); do
  sleep 0.05
  step=$((step + 1))
  echo "step $step"
  if [ "$(basename "$HOME")" = host0 ]; then
    echo "$step" >"$CLOUD/bucket/new" && mv "$CLOUD/bucket/new" "$CLOUD/bucket/step"
  fi
done
PYTHON
chmod +x .venv/bin/python
