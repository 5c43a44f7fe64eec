#!/usr/bin/env bash
# What tools/tpu/launch_tpu.sh does on each host of a TPU slice; nothing that a
# person calls. The checkout is two folders up.
#
#   setup STAMP        makes .venv; STAMP names the code that it is made for
#   ready STAMP        succeeds when that has been done
#   start COMMAND...   starts the run, apart from the connection that asks
#   status             one line: host=NAME state=STATE code=CODE, last line
#   follow LINES       the log, live, until the run ends
#   stop               ends the run: SIGTERM, after 150 seconds SIGKILL
#
# A run is running, ended, halted (by stop), stopped (by another SIGTERM to this
# host, as when it is taken away), lost (ended without a word) or none.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
run=.tpu_run

_setup() {
  export PATH=$HOME/.local/bin:$PATH
  rm -f .tpu_ready
  # The hosts' own Python may be older than 3.11; uv brings one.
  if ! command -v uv >/dev/null; then
    # Newer systems ask for the second form.
    python3 -m pip install --quiet --user uv ||
      python3 -m pip install --quiet --user --break-system-packages uv ||
      return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    uv venv --quiet --python '>=3.11' .venv || return 1
  fi
  uv pip install --quiet --python .venv/bin/python --editable '.[tpu]' ||
    return 1
  echo "$1" >.tpu_ready
}

# When a process was started, in words that no other process of any boot shares:
# the boot, and the 22nd field of its stat, of which the first two are cut off
# (the second, its name, may have spaces and brackets). Fails if it has ended.
_born() { # PID
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -ra stat <<<"${stat##*) }"
  [ "${stat[0]}" != Z ] || return 1
  echo "$(cat /proc/sys/kernel/random/boot_id) ${stat[19]}"
}

# Whether the run's process is there, and not one that has got its number since.
_is_running() {
  local pid born
  read -r pid born 2>/dev/null <$run/pid && [ "$(_born "$pid")" = "$born" ]
}

# Signals the run's whole process group, if the run is there.
_signal() { # NAME
  local pid _
  if _is_running; then
    read -r pid _ <$run/pid
    kill "-$1" -- "-$pid" 2>/dev/null
  fi
}

_state() {
  if [ ! -e $run/pid ]; then
    echo none -
  elif [ -e $run/status ]; then
    cat $run/status
  elif _is_running; then
    echo running -
  else
    echo lost -
  fi
}

_start() {
  local state _
  read -r state _ < <(_state)
  if [ "$state" = running ]; then
    if [ "$(cat $run/command)" = "$*" ]; then
      return 0
    fi
    echo "error: another run is on host $(hostname): $(cat $run/command)" >&2
    return 3
  fi
  mkdir -p $run
  rm -f $run/status $run/pid $run/halt
  if [ -e $run/log ]; then
    mv $run/log $run/log.previous
  fi
  echo "$*" >$run/command
  # A session of its own outlives the connection.
  nohup setsid bash tools/tpu/tpu_host.sh supervise "$@" \
    >$run/log 2>&1 </dev/null &
  while [ ! -e $run/pid ]; do
    sleep 0.1
  done
}

_supervise() {
  local word=ended code=0
  trap 'word=stopped' TERM
  echo "$$ $(_born $$)" >$run/pid.new
  mv $run/pid.new $run/pid
  "$@" || code=$?
  [ ! -e $run/halt ] || word=halted
  echo "$word $code" >$run/status.new
  mv $run/status.new $run/status
}

_status() {
  local state code
  read -r state code < <(_state)
  echo "host=$(hostname) state=$state code=$code" \
    "$(tail -n 1 $run/log 2>/dev/null | tr -d '\r' | cut -c 1-200)"
}

_follow() {
  local pid _ until=()
  if [ -e $run/log ]; then
    if _is_running; then
      read -r pid _ <$run/pid
      until=(-s 0.2 -f --pid="$pid")
    fi
    tail -n "$1" "${until[@]}" $run/log
  fi
}

_stop() {
  local state _ second
  for ((second = 0; second <= 150; second++)); do
    read -r state _ < <(_state)
    if [ "$state" != running ]; then
      return 0
    fi
    # Once: a second signal would end it unsaved.
    if ((second == 0)); then
      touch $run/halt
      _signal TERM
    fi
    sleep 1
  done
  _signal KILL
  return 0
}

case ${1:-} in
  setup) _setup "$2" ;;
  ready) [ "$(cat .tpu_ready 2>/dev/null)" = "$2" ] ;;
  start) shift && _start "$@" ;;
  supervise) shift && _supervise "$@" ;;
  status) _status ;;
  follow) _follow "$2" ;;
  stop) _stop ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
