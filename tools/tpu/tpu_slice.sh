# A slice of Cloud TPUs, by gcloud: tools/tpu/launch_tpu.sh sources this file and
# sets what is used here (NAME, SPOT, `place`, ...). Every call has a time limit.
# shellcheck shell=bash disable=SC2154

# --- gcloud ---

# As one would type it: quotes only round what needs them.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,~-]+$ ]]; then
      if [[ $word == *\'* && $word != *[\"\$\`\\!]* ]]; then
        word="\"$word\""
      else
        word="'${word//\'/\'\\\'\'}'"
      fi
    fi
    line+="${line:+ }$word"
  done
  echo "$line"
}

# Runs gcloud with a limit in seconds (0: none), its output in $work/out and
# $work/err; under --print only shows it. 124 means that it hung.
cloud() { # SECONDS ARGUMENTS...
  local limit=$1
  shift
  if [ -n "$printing" ]; then
    quoted gcloud compute tpus "$@" "${place[@]}"
    return 0
  fi
  timeout --kill-after=10 "$limit" gcloud compute tpus "$@" "${place[@]}" \
    </dev/null >"$work/out" 2>"$work/err" &
  # Ctrl-C interrupts a wait, and not what it waits for.
  call=$!
  local code=0
  wait "$call" || code=$?
  call=
  if ((code == 124 || code == 137)); then
    echo "no answer in $limit seconds" >"$work/err"
  fi
  return "$code"
}

# The last words of gcloud, on one line.
reason() {
  grep -v '^[[:space:]]*$' "$work/err" | tail -n 2 | tr '\n' ' ' |
    sed 's/^ERROR: //; s/ *$//'
}

# Ends the script when gcloud's words tell that trying again is no use.
stop_if_hopeless() { # WHAT, and the words, else those in $work/err
  case ${2:-$(cat "$work/err")} in
    *'gcloud auth login'* | *'active account'* | *Reauthentication* | *'invalid_grant'*)
      stop_with 1 "gcloud is not logged in: run gcloud auth login, then the same command again."
      ;;
    *[Qq]uota*)
      stop_with 1 "Quota does not allow $1: ${2:-$(reason)}. Choose a smaller ACCELERATOR, another ZONE or the other SPOT, or ask for quota: https://cloud.google.com/tpu/docs/quota."
      ;;
    *SERVICE_DISABLED* | *'has not been used in project'*)
      stop_with 1 "The project has no Cloud TPU yet: run gcloud services enable tpu.googleapis.com, then the same command again."
      ;;
    *'property [project]'* | *'core/project'*)
      stop_with 1 "gcloud does not know the project: set PROJECT."
      ;;
    *PERMISSION_DENIED* | *'does not have permission'*)
      stop_with 1 "This account may not do that ($1): $(reason)."
      ;;
    *INVALID_ARGUMENT* | *'unrecognized arguments'* | *'Invalid value'*)
      stop_with 1 "Google Cloud refuses $1: $(reason)."
      ;;
  esac
}

# As `cloud`, tried again when it hangs or fails without a hopeless reason. After
# the last time it returns 1, with a sentence in `failure`.
insist() { # WHAT SECONDS ARGUMENTS...
  local what=$1 attempt
  shift
  for ((attempt = 1; attempt <= TRIES; attempt++)); do
    if cloud "$@"; then return 0; fi
    failure="gcloud failed $attempt times at $what: $(reason)."
    if grep -q publickey "$work/err"; then
      failure+=' gcloud'\''s key may be missing in the agent: ssh-add ~/.ssh/google_compute_engine.'
    fi
    stop_if_hopeless "$what"
    say "$failure"
    if ((attempt < TRIES)); then sleep "$POLL"; fi
  done
  return 1
}

# tools/tpu/tpu_host.sh on one host or on all; WORKER is a number or all.
on_hosts() { # WORKER SECONDS ARGUMENTS...
  local worker=$1 limit=$2
  shift 2
  cloud "$limit" tpu-vm ssh "$NAME" "--worker=$worker" \
    "--command=$(quoted bash t5x_variants/tools/tpu/tpu_host.sh "$@")"
}

# --- the slice ---

# Sets `state`: ABSENT, WAITING, READY, GOING, LOST or UNKNOWN; and `cloud_says`.
look() {
  local code=0 word why
  cloud "$CALL_LIMIT" queued-resources describe "$NAME" \
    '--format=value(state.state,state.failedData.error.message)' || code=$?
  if [ -n "$printing" ]; then
    # As if it were not there at first, and then were.
    state=${pretended:-READY} pretended=READY cloud_says=''
    [ "$state" = ABSENT ] || cloud 0 tpu-vm describe "$NAME" '--format=value(state)'
    return 0
  fi
  if ((code)); then
    case $(cat "$work/err") in
      *NOT_FOUND* | *'not found'*) state=ABSENT cloud_says='not there' ;;
      *)
        stop_if_hopeless 'a look at the slice'
        state=UNKNOWN cloud_says="gcloud fails: $(reason)"
        ;;
    esac
    return 0
  fi
  IFS=$'\t' read -r word why <"$work/out"
  cloud_says=$word${why:+: $why}
  case $word in
    ACTIVE) look_at_node ;;
    SUSPENDING | DELETING) state=GOING ;;
    SUSPENDED) state=LOST ;;
    FAILED)
      stop_if_hopeless 'this slice' "${why:-no reason given}"
      state=LOST
      ;;
    *) state=WAITING ;;
  esac
}

look_at_node() {
  if ! cloud "$CALL_LIMIT" tpu-vm describe "$NAME" '--format=value(state)'; then
    case $(cat "$work/err") in
      *NOT_FOUND* | *'not found'*) state=LOST cloud_says='its node is gone' ;;
      *) state=UNKNOWN cloud_says="gcloud fails: $(reason)" ;;
    esac
    return 0
  fi
  cloud_says=$(cat "$work/out")
  case $cloud_says in
    READY) state=READY ;;
    PREEMPTED | TERMINATED | STOPPED | HIDDEN) state=LOST ;;
    DELETING | STOPPING | HIDING) state=GOING ;;
    *) state=WAITING ;;
  esac
}

# Ends the script unless the slice is there.
need_slice() {
  look
  if [ "$state" != READY ]; then
    stop_with 1 "$command needs the slice $NAME in $ZONE, which is not ready: $cloud_says. bash tools/tpu/launch_tpu.sh create asks for it."
  fi
}

# Asks for the slice until it is there.
ensure_slice() {
  local requests=0 unknown=0 waits=1 i said=''
  [ -z "$printing" ] || pretended=ABSENT
  while true; do
    look
    if [ "$state" != UNKNOWN ]; then unknown=0; fi
    if [ "$cloud_says" != "$said" ] && [ -z "$printing" ]; then
      say "$(date +%H:%M:%S) slice $NAME: $cloud_says"
      said=$cloud_says
    fi
    case $state in
      READY) return 0 ;;
      ABSENT)
        if ((++requests > MAX_REQUESTS)); then
          stop_with 1 "The slice was asked for $MAX_REQUESTS times and not given: $cloud_says."
        fi
        request
        ;;
      LOST)
        # A request that failed at once is not made again at once.
        if ((requests > 0)); then
          for ((i = 0; i < waits; i++)); do sleep "$POLL"; done
          waits=$((waits * 2 < MAX_WAIT ? waits * 2 : MAX_WAIT))
        fi
        remove
        ;;
      UNKNOWN)
        if ((++unknown >= TRIES)); then
          stop_with 1 "No state of the slice after $TRIES looks: $cloud_says."
        fi
        ;;
    esac
    [ -n "$printing" ] || sleep "$POLL"
  done
}

request() {
  local words=("$NAME" "--node-id=$NAME"
    "--accelerator-type=$accelerator_type" "--runtime-version=$RUNTIME")
  if ((SPOT)); then words+=(--spot); fi
  cloud "$CALL_LIMIT" queued-resources create "${words[@]}" --async && return 0
  case $(cat "$work/err") in
    # A call that hung may have been heard.
    *ALREADY_EXISTS* | *'already exists'*) ;;
    *)
      stop_if_hopeless "$([ "$SPOT" = 1 ] && echo spot || echo on-demand) $ACCELERATOR in $ZONE"
      say "The request was not taken: $(reason)"
      ;;
  esac
}

remove() {
  insist 'the deletion of the slice' "$CALL_LIMIT" \
    queued-resources delete "$NAME" --force --async ||
    [[ $failure == *NOT_FOUND* ]] || stop_with 1 "$failure"
}

delete() {
  look
  if [ "$state" = ABSENT ]; then
    say "There is no slice $NAME in $ZONE."
    return 0
  fi
  remove
  [ -z "$printing" ] || return 0
  while [ "$state" != ABSENT ]; do
    sleep "$POLL"
    look
    if [ "$state" = UNKNOWN ]; then
      stop_with 1 "Deletion was asked for, but its end was not seen: $cloud_says. Look: bash tools/tpu/launch_tpu.sh status."
    fi
  done
  say "Slice $NAME is given back."
}
