# Makes the virtual environment that demo.sh and test.sh run in; sourced by
# both. Leaves its python's path in VENV_PYTHON.
#
#   PYTHON=python3.12   the interpreter to use; its environment is then
#                       .venv-3.12, beside the default one's .venv
#   EXTRA=tpu           an extra of setup.py to install beside `test`

_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Why a command is no Python for us, in a few words.
_complaint() { # COMMAND
  if ! command -v "$1" >/dev/null; then
    echo 'is not there'
  elif _version "$1" >/dev/null; then
    echo "is Python $(_version "$1")"
  else
    echo "does not run ($("$1" -c '' 2>&1 | head -n 1))"
  fi
}

# The first interpreter of this name that is new enough: on PATH, or among
# pyenv's own, whose shim on PATH fails where pyenv was told another version.
_find() { # NAME
  local found
  while read -r found; do
    if _is_new_enough "$found"; then
      echo "$found"
      return 0
    fi
  done < <(
    type -aP "$1"
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1" 2>/dev/null
  )
  return 1
}

_choose_python() {
  local name found
  if [ -n "${PYTHON:-}" ]; then
    if ! found=$(_find "$PYTHON"); then
      echo "error: PYTHON=$PYTHON $(_complaint "$PYTHON"); Python 3.11 or newer" \
        "is needed." >&2
      return 1
    fi
    if [ "$found" != "$(type -P "$PYTHON")" ]; then
      echo "PYTHON=$PYTHON $(_complaint "$PYTHON"); $found is taken." >&2
    fi
    PYTHON=$found
    return 0
  fi
  for name in python3 python3.11 python3.12 python3.13 python3.14; do
    if PYTHON=$(_find "$name"); then
      return 0
    fi
  done
  echo "error: Python 3.11 or newer is needed; python3 $(_complaint python3)." \
    "Install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

# torch's newest CPU build, where pip is set up to find one: the other build
# brings gigabytes of CUDA libraries, which no test needs.
_cpu_torch() {
  "$VENV_PYTHON" -m pip index versions torch 2>/dev/null | tr -d ' ' |
    tr ',:' '\n\n' | grep -m 1 '+cpu$'
}

_setup_venv() {
  local folder=.venv named=${PYTHON:-}
  _choose_python || return 1
  [ -z "$named" ] || folder=.venv-$(_version "$PYTHON")
  VENV_PYTHON=$PWD/$folder/bin/python
  # Done already for this very setup.py?
  local stamp=$folder/installed${EXTRA:+-$EXTRA}
  if [ -x "$VENV_PYTHON" ] && cmp -s setup.py "$stamp"; then
    return 0
  fi
  echo "Installing${EXTRA:+ $EXTRA} into $folder with $(_version "$PYTHON") (PyPI only, about" \
    "two minutes) ..."
  "$PYTHON" -m venv "$folder" || return 1
  local torch=
  [ "${EXTRA:-}" = hf ] && torch=$(_cpu_torch || true)
  "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --editable ".[test${EXTRA:+,$EXTRA}]" ${torch:+"torch==$torch"} || return 1
  cp setup.py "$stamp"
}

_setup_venv
