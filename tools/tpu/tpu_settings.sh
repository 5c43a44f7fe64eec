# The settings of tools/tpu/launch_tpu.sh, which sources this file: read from flags
# and environment variables, and checked before anything is asked for.
# shellcheck shell=bash disable=SC2034,SC2154

SETTINGS='NAME ZONE ACCELERATOR BUCKET PROJECT SPOT RUNTIME MODULE POLL'
SETTINGS+=' CALL_LIMIT SETUP_LIMIT'

read_arguments() {
  local known='create, setup, run, status, logs, stop, delete' name
  printing='' command='' flags=()
  while (($#)); do
    case $1 in
      -h | --help | help) help && exit 0 ;;
      --print) printing=1 ;;
      --)
        shift
        flags=("$@")
        break
        ;;
      --*=*)
        name=${1%%=*}
        name=${name#--}
        name=${name//-/_}
        name=${name^^}
        if [[ " $SETTINGS " != *" $name "* ]]; then
          stop_with 2 "${1%%=*} is no setting: they are ${SETTINGS// /, }; flags of the training command come after --."
        fi
        printf -v "$name" %s "${1#*=}"
        ;;
      create | setup | run | status | logs | stop | delete)
        if [ -n "$command" ]; then
          stop_with 2 "One command at a time: $command or $1."
        fi
        command=$1
        ;;
      *) stop_with 2 "$1 is no command of this script: $known; --help says what each does." ;;
    esac
    shift
  done
  if [ -z "$command" ]; then
    stop_with 2 "Say what to do: $known; --help says what each does."
  fi
  if ((${#flags[@]})) && [ "$command" != run ]; then
    stop_with 2 "Only run takes flags after --, $command does not."
  fi
}

check_settings() {
  local name missing=''
  NAME=${NAME:-} ZONE=${ZONE:-} ACCELERATOR=${ACCELERATOR:-}
  BUCKET=${BUCKET:-} PROJECT=${PROJECT:-} SPOT=${SPOT:-1}
  RUNTIME=${RUNTIME:-} MODULE=${MODULE:-train} POLL=${POLL:-30}
  CALL_LIMIT=${CALL_LIMIT:-180} SETUP_LIMIT=${SETUP_LIMIT:-1800}
  local needed='NAME ZONE'
  case $command in create | run) needed+=' ACCELERATOR' ;; esac
  for name in $needed; do
    [ -n "${!name}" ] || missing+="${missing:+, }$name"
  done
  if [ -n "$missing" ]; then
    stop_with 2 "$command needs $missing: set as environment variables or as flags, for example --${name,,}=..."
  fi
  if ! [[ $NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]; then
    stop_with 2 "NAME is '$NAME'; it must be small letters, digits and dashes, and begin with a letter."
  fi
  if ! [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]]; then
    stop_with 2 "ZONE is '$ZONE'; it must be a zone such as us-west4-a."
  fi
  case $SPOT in 0 | 1) ;; *) stop_with 2 "SPOT is '$SPOT'; it must be 1 or 0." ;; esac
  for name in POLL CALL_LIMIT SETUP_LIMIT; do
    if ! [[ ${!name} =~ ^[0-9]*[1-9][0-9]*$|^[0-9]*\.[0-9]*[1-9]$ ]]; then
      stop_with 2 "$name is '${!name}'; it must be a number of seconds."
    fi
  done
  BUCKET=${BUCKET#gs://}
  BUCKET=${BUCKET%/}
  [ -z "$ACCELERATOR" ] || read_accelerator
  [ "$command" != run ] || read_run
  place=("--zone=$ZONE" --quiet)
  [ -z "$PROJECT" ] || place+=("--project=$PROJECT")
  [ -z "$printing" ] || return 0
  for name in gcloud:'it is Google Cloud'\''s command line: https://cloud.google.com/sdk/docs/install' \
    timeout:'it belongs to GNU coreutils'; do
    if ! command -v "${name%%:*}" >/dev/null; then
      stop_with 2 "There is no ${name%%:*} on this machine; ${name#*:}."
    fi
  done
}

# The cloud's name of the accelerator, and the software that its hosts run.
# Of v4 and v5p the number counts TensorCores, two a chip; of others, chips.
# https://cloud.google.com/tpu/docs/runtimes
read_accelerator() {
  local generation=${ACCELERATOR%%-*} size=${ACCELERATOR#*-} usual least=1
  if [[ $generation == 7x || $generation == tpu7x || $generation == v7x ]]; then
    stop_with 2 "ACCELERATOR is $ACCELERATOR; 7x is to be had on GKE only: docs/tpu.md, 'With XPK on GKE'."
  fi
  case $generation in
    v4) usual=tpu-ubuntu2204-base least=8 ;;
    v5e | v5litepod) generation=v5litepod usual=v2-alpha-tpuv5-lite ;;
    v5p) usual=v2-alpha-tpuv5 least=8 ;;
    v6e) usual=v2-alpha-tpuv6e ;;
    *) size=none ;;
  esac
  if ! [[ $size =~ ^[1-9][0-9]*$ ]]; then
    stop_with 2 "ACCELERATOR is '$ACCELERATOR'; it must be a generation and a size: v4-N, v5e-N, v5p-N or v6e-N, for example v5e-8."
  fi
  if ((size < least || size % least)); then
    stop_with 2 "ACCELERATOR is $ACCELERATOR; the number of $generation counts TensorCores, two a chip, and is a multiple of $least."
  fi
  accelerator_type=$generation-$size
  RUNTIME=${RUNTIME:-$usual}
}

# Refuses a gin file that is here and that the hosts would not get.
check_copied() { # FILE
  if has_git && [ -e "$here/$1" ] &&
    ! git -C "$here" ls-files --error-unmatch -- "$1" >/dev/null 2>&1; then
    stop_with 2 "--gin_file=$1 would not be on the hosts: only files that git tracks are copied. Run git add $1, then the same command again."
  fi
}

# The command that every host runs.
read_run() {
  local flag model_dir=''
  if ! [[ $MODULE =~ ^[a-z_0-9]+$ && -e $here/t5x_variants/$MODULE.py ]]; then
    stop_with 2 "MODULE is '$MODULE'; there is no t5x_variants/$MODULE.py."
  fi
  if ((${#flags[@]} == 0)); then
    stop_with 2 "run needs the flags of python -m t5x_variants.$MODULE after --, for example -- --gin_file=gin/models/tiny.gin ..."
  fi
  for flag in "${flags[@]}"; do
    case $flag in
      --gin.MODEL_DIR=* | --gin_bindings=MODEL_DIR*) model_dir=$flag ;;
      --gin_file=*) check_copied "${flag#--gin_file=}" ;;
    esac
  done
  if [ "$MODULE" = train ] && [ -z "$model_dir" ]; then
    if [ -z "$BUCKET" ]; then
      stop_with 2 "run needs BUCKET, where the run lies when the slice is gone; or --gin.MODEL_DIR after --."
    fi
    model_dir="--gin.MODEL_DIR='gs://$BUCKET/$NAME'"
    flags+=("$model_dir")
  fi
  if [ -n "$model_dir" ] && [[ $model_dir != *://* ]]; then
    say 'MODEL_DIR is not in a bucket: it is lost with the slice, unless it is a disk of its own.'
  fi
  training=(.venv/bin/python -m "t5x_variants.$MODULE" "${flags[@]}")
}
