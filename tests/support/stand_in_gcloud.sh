#!/usr/bin/env bash
# Stands in for gcloud in tests/tools/test_launch.py: a cloud of one slice with two
# hosts, which are folders. $CLOUD holds its state:
#
#   calls          every call, a line each
#   queue, node    states of the queued resource and of its node
#   host0, host1   the hosts' home folders, while the node is there
#   bucket         outlives the slice
#   plan-VERB      lines of shell, one for each next call of VERB (create,
#                  describe, node, delete, scp, ssh, follow), run before it is
#                  answered: it may fail, hang, or change any of the above
set -u
echo "$*" >>"$CLOUD/calls"

not_found() {
  echo 'ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found' >&2
  exit 1
}

# The hosts are gone, with all that ran on them.
take_away() {
  local pid
  for pid in "$CLOUD"/host*/t5x_variants/.tpu_run/pid; do
    if [ -e "$pid" ]; then kill -KILL -- "-$(cut -d ' ' -f 1 "$pid")" 2>/dev/null; fi
  done
  rm -rf "$CLOUD"/host* "$CLOUD/node"
}

give() {
  echo ACTIVE >"$CLOUD/queue"
  echo READY >"$CLOUD/node"
  mkdir -p "$CLOUD/host0" "$CLOUD/host1"
}

fail() { # WORDS
  echo "ERROR: (gcloud.compute.tpus) $*" >&2
  exit 1
}

plan() { # VERB
  local line
  if [ -s "$CLOUD/plan-$1" ]; then
    line=$(head -n 1 "$CLOUD/plan-$1")
    sed -i 1d "$CLOUD/plan-$1"
    eval "$line"
  fi
}

on_host() { # FOLDER COMMAND
  cd "$1" && HOME=$1 bash -c "$2"
}

verb=$4
case "$3 $4 $*" in
  'tpu-vm describe '*) verb=node ;;
  *tpu_host.sh\ follow*) verb=follow ;;
esac
command=''
for word in "$@"; do
  if [[ $word == --command=* ]]; then command=${word#--command=}; fi
done
plan "$verb"
queue=$(cat "$CLOUD/queue" 2>/dev/null)
case $verb in
  create)
    if [ -n "$queue" ]; then fail 'ALREADY_EXISTS: Resource already exists'; fi
    echo WAITING_FOR_RESOURCES >"$CLOUD/queue"
    ;;
  describe)
    [ -n "$queue" ] || not_found
    echo "$queue"
    if [ "$queue" = WAITING_FOR_RESOURCES ]; then give; fi
    ;;
  node)
    cat "$CLOUD/node" 2>/dev/null || not_found
    ;;
  delete)
    [ -n "$queue" ] || not_found
    take_away
    rm "$CLOUD/queue"
    ;;
  scp | ssh | follow)
    [ -e "$CLOUD/node" ] || not_found
    workers=("$CLOUD"/host*)
    if [[ $* == *--worker=0* ]]; then workers=("$CLOUD/host0"); fi
    code=0
    for worker in "${workers[@]}"; do
      if [ "$verb" = scp ]; then
        cp "$5" "$worker" || code=1
      else
        (on_host "$worker" "$command") || code=1
      fi
    done
    exit "$code"
    ;;
esac
