#!/usr/bin/env bash
# Trains on a Cloud TPU slice, with gcloud, from your own machine.
#
#   bash tools/tpu/launch_tpu.sh run [SETTINGS] -- --gin_file=... --gin_file=...
#   bash tools/tpu/launch_tpu.sh COMMAND [SETTINGS]
#
# Commands:
#   create    asks for the slice, in the queue, and waits until it is there
#   setup     copies this checkout, the files that git tracks, to every host and
#             installs it there
#   run       all of it: creates the slice if it is not there, sets it up, starts
#             `python -m t5x_variants.train` with the flags after -- on every
#             host, and follows the log of host 0. A slice that is taken away is
#             asked for again, and the run goes on from its bucket. Ctrl-C leaves
#             the run alone; the same command follows it again.
#   status    the slice's state, and each host's with the last line of its log
#   logs      follows the log of host 0
#   stop      ends the run, which saves first; the slice stays
#   delete    gives the slice back; what is in the bucket stays
#
# Settings, environment variables or flags (ZONE=... or --zone=...):
#   NAME         of the slice; also of the run's folder in the bucket
#   ZONE         for example us-west4-a
#   ACCELERATOR  generation and size, for example v5e-8, v6e-256, v5p-128, v4-8
#   BUCKET       Cloud Storage bucket; the run lies in gs://BUCKET/NAME unless
#                the flags after -- set MODEL_DIR
#   PROJECT      Google Cloud project; else the one that gcloud is set to
#   SPOT         1: cheap, and may be taken away at any time; 0: on demand.
#                Default 1
#   RUNTIME      software version of the hosts; else the generation's usual one
#   MODULE       train, or another of evaluate, infer, prepare_data
#   POLL         seconds between two looks at the slice. Default 30
#   CALL_LIMIT   seconds after which a gcloud call counts as hung. Default 180
#   SETUP_LIMIT  the same for copying and installing. Default 1800
#   --print      shows every command and runs none
#
# Before: gcloud auth login; gcloud services enable tpu.googleapis.com; and for
# several hosts ssh-add ~/.ssh/google_compute_engine. docs/tpu.md says more.
set -uo pipefail

TRIES=3          # calls that hang or fail, and runs that fail, in a row
MAX_REQUESTS=50  # times that a slice is asked for without being given
MAX_WAIT=20      # times POLL between two of these
LONG=600         # seconds after which a failure is not one of the start
MAX_CRASHES=20   # of one run in all, on slices that were not taken away

stop_with() { # STATUS SENTENCE
  echo "error: $2" >&2
  exit "$1"
}

say() {
  echo "$*" >&2
}

main() {
  if ((BASH_VERSINFO[0] < 5)); then
    stop_with 2 "This is bash $BASH_VERSION; bash 5 is needed, as Cloud Shell has it (on a Mac: brew install bash coreutils)."
  fi
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  # shellcheck source=tools/tpu/tpu_settings.sh
  source "$here/tools/tpu/tpu_settings.sh"
  # shellcheck source=tools/tpu/tpu_files.sh
  source "$here/tools/tpu/tpu_files.sh"
  # shellcheck source=tools/tpu/tpu_slice.sh
  source "$here/tools/tpu/tpu_slice.sh"
  read_arguments "$@"
  check_settings
  work=$(mktemp -d) call='' follower=''
  trap 'clean_up' EXIT
  case $command in
    create) ensure_slice ;;
    setup) need_slice && { setup || stop_with 1 "$failure"; } ;;
    run) run ;;
    status) status ;;
    logs) need_slice && follow 20 && await_follower ;;
    stop) need_slice && stop ;;
    delete) delete ;;
  esac
}

help() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

clean_up() {
  local process
  for process in $call $follower; do kill "$process" 2>/dev/null; done
  rm -rf "$work"
}

# --- the hosts ---

setup() {
  local archive=$work/t5x_variants.tgz
  if [ -n "$printing" ]; then
    archive=t5x_variants.tgz
    echo "git ls-files -z | tar --null --files-from=- -czf $archive"
  else
    (cd "$here" && files | tar --null --files-from=- -czf "$archive") ||
      stop_with 1 'The checkout could not be packed.'
    say_left_out
    say 'Copying the checkout to the hosts and installing it, some minutes ...'
  fi
  insist 'the copy of the checkout' "$SETUP_LIMIT" \
    tpu-vm scp "$archive" "$NAME:" --worker=all || return 1
  insist 'the installation on the hosts' "$SETUP_LIMIT" \
    tpu-vm ssh "$NAME" --worker=all \
    "--command=mkdir -p t5x_variants && tar -xzf t5x_variants.tgz -C t5x_variants && bash t5x_variants/tools/tpu/tpu_host.sh setup $(stamp)"
}

# Sets `hosts`, a line each, and returns whether all of them answered.
ask_hosts() {
  local code=0
  on_hosts all "$CALL_LIMIT" status || code=$?
  hosts=''
  if [ -z "$printing" ]; then
    hosts=$(grep -E '^host=[^ ]* state=' "$work/out")
    [ -n "$hosts" ] || code=1
  fi
  return "$code"
}

any_host() { # EXPRESSION
  grep -Eq "^host=[^ ]* $1" <<<"$hosts"
}

status() {
  look
  [ -n "$printing" ] || echo "slice $NAME: $cloud_says"
  if [ "$state" = READY ]; then
    ask_hosts || [ -n "$printing" ] || say "Not all hosts answer: $(reason)"
    [ -z "$hosts" ] || echo "$hosts"
  fi
}

stop() {
  insist 'the end of the run' "$CALL_LIMIT" tpu-vm ssh "$NAME" --worker=all \
    '--command=bash t5x_variants/tools/tpu/tpu_host.sh stop' ||
    stop_with 1 "$failure"
}

# Shows the log of host 0 from its last LINES on, in the background.
follow() { # LINES, or +1 for all
  local words=(tpu-vm ssh "$NAME" --worker=0
    "--command=bash t5x_variants/tools/tpu/tpu_host.sh follow $1")
  follower=''
  if [ -n "$printing" ]; then
    cloud 0 "${words[@]}"
    return 0
  fi
  timeout 0 gcloud compute tpus "${words[@]}" "${place[@]}" </dev/null &
  follower=$!
}

await_follower() {
  [ -z "$follower" ] || wait "$follower"
}

# Waits for the follower's end for up to POLL seconds: whether it has come.
follower_ended() {
  timeout "$POLL" tail -s 0.2 --pid="$follower" -f /dev/null
  if kill -0 "$follower" 2>/dev/null; then return 1; fi
  follower=
}

# --- a run ---

run() {
  local failures=0 crashes=0 begun lines code
  trap 'on_interrupt' INT
  while true; do
    ensure_slice
    begun=$SECONDS code=1 lines=20
    if ask_hosts && [ -z "$printing" ] &&
      ! any_host 'state=(ended|halted|stopped|lost|none)'; then
      check_same
      say 'The run is going on; its log:'
    else
      start_anew && lines=+1 || lines=
    fi
    if [ -n "$lines" ]; then
      follow "$lines"
      watch
      code=$?
    fi
    if [ -n "$printing" ] || ((code == 0)); then return 0; fi
    # A run that went on for a while had no failure at its start.
    if ((code == 2 || SECONDS - begun > LONG)); then failures=0; fi
    if ((code == 1)); then
      look
      if [ "$state" = READY ]; then ((++failures, ++crashes)); fi
      if ((failures >= TRIES || crashes >= MAX_CRASHES)); then
        stop_with 1 "The run failed $failures times in a row and $crashes in all; what the hosts said stands above, and the slice is still there (delete gives it back)."
      fi
    fi
    sleep "$POLL"
  done
}

on_interrupt() {
  if [ -n "$follower" ]; then
    say 'The run goes on without this script. The same command or logs follow it'
    say 'again, stop ends it, delete gives the slice back.'
  else
    say 'Nothing more is asked for; what is there, status says.'
  fi
  exit 130
}

# Ends the script when what runs is not this command.
check_same() {
  if ! on_hosts all "$CALL_LIMIT" start "${training[@]}" &&
    [[ $(cat "$work/err") == *'another run is on'* ]]; then
    stop_with 2 "$(grep -m 1 -o 'another run is on.*' "$work/err"). Wait for its end, or end it: stop."
  fi
}

# Starts the command on every host; what still runs on some is ended first.
start_anew() {
  if any_host 'state=running'; then stop; fi
  if ! on_hosts all "$CALL_LIMIT" ready "$(stamp)" || [ -n "$printing" ]; then
    setup || return 1
  fi
  if ! on_hosts all "$CALL_LIMIT" start "${training[@]}"; then
    say "The run did not start on all hosts: $(reason)"
    return 1
  fi
}

# Until the run's end: 0 when it has ended well, 1 when it failed, 2 when it is
# to go on: the slice was taken away, or only the connection broke.
watch() {
  if [ -n "$printing" ]; then
    ask_hosts
    return 0
  fi
  until follower_ended; do
    look
    case $state in
      LOST | GOING | ABSENT)
        kill "$follower" 2>/dev/null
        follower=
        say "The slice was taken away ($cloud_says); it is asked for again."
        return 2
        ;;
    esac
  done
  verdict
}

verdict() {
  local attempt
  # The other hosts end a moment after host 0.
  for ((attempt = 1; attempt <= TRIES; attempt++)); do
    if ask_hosts; then
      if ! any_host 'state=running'; then break; fi
      if ! any_host 'state=(ended|halted|stopped|lost|none)'; then return 2; fi
    fi
    look
    case $state in LOST | GOING | ABSENT) return 2 ;; esac
    sleep "$POLL"
  done
  if ((attempt <= TRIES)) &&
    ! grep -Evq '^host=[^ ]* state=ended code=0( |$)' <<<"$hosts"; then
    say 'The run has ended well on all hosts.'
    return 0
  fi
  if any_host 'state=halted'; then
    say 'The run was ended by stop; run goes on with it.'
    return 0
  fi
  echo "$hosts" >&2
  look
  case $state in LOST | GOING | ABSENT) return 2 ;; esac
  if any_host 'state=ended code=2 '; then
    stop_with 2 'The run was refused; the lines above say why, and the slice is still there (delete gives it back).'
  fi
  if any_host 'state=stopped'; then
    say 'A host was told to stop; the run goes on when the slice is there.'
    return 2
  fi
  return 1
}

main "$@"
