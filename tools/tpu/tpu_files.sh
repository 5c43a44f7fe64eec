# Which files of the checkout go to the hosts: tools/tpu/launch_tpu.sh sources this
# file and sets `here`, the checkout's folder.
# shellcheck shell=bash disable=SC2154

# Names of the files that the hosts get: those that git tracks, and no others,
# because a checkout may hold keys or data; without git, the parts that they run.
files() {
  cd "$here" || return 1
  if has_git; then
    git ls-files -z |
      while IFS= read -r -d '' name; do
        if [ -e "$name" ]; then printf '%s\0' "$name"; fi
      done
  else
    find setup.py README.md gin t5x_variants tools -type f -not -name '.*' \
      -not -path '*/__pycache__/*' -print0 | sort -z
  fi
}

has_git() {
  [ -e "$here/.git" ] && command -v git >/dev/null
}

# Tells which files are left out that git was not told to ignore.
say_left_out() {
  local names
  has_git || return 0
  mapfile -d '' names < <(git -C "$here" ls-files -z --others --exclude-standard)
  if ((${#names[@]})); then
    say "Not copied, because git does not track them (git add NAME copies one):"
    say "$(printf '  %s\n' "${names[@]:0:10}")"
    if ((${#names[@]} > 10)); then say "  and $((${#names[@]} - 10)) more"; fi
  fi
}

# What the code is, in a word, so that hosts with it are not set up again.
stamp() {
  { files && files | (cd "$here" && xargs -0 cat); } | cksum | cut -d ' ' -f 1
}
