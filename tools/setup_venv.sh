# Makes the virtual environment that demo.sh and test.sh run in; sourced by
# both. Leaves its python's path in VENV_PYTHON.
#
#   PYTHON=python3.12   the interpreter to use; its environment is then
#                       .venv-3.12, beside the default one's .venv
#   EXTRA=tpu           an extra of setup.py to install beside `test`

# shellcheck source=tools/find_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"

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
