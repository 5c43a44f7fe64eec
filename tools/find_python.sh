# Functions that look for a Python of this machine; sourced by setup_venv.sh and
# .ci/run.
# shellcheck shell=bash

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
