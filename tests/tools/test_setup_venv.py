"""A Python that runs is found, or it is said why none does; and for CI two."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Answers questions about its version and makes an environment that is empty.
INTERPRETER = """#!/bin/bash
case "$*" in
  *print*) echo {version} ;;
  *sys.exit*) [[ {version} != 3.10 ]] ;;
  '-m venv '*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "$0" >"$3/made_by" ;;
esac
"""
# As pyenv's, in a folder for which it was told another version.
SHIM = """#!/bin/bash
echo "pyenv: ${0##*/}: command not found" >&2
echo "The command exists in these Python versions: 3.12.1" >&2
exit 127
"""


class Machine:
  """A checkout on a machine with interpreters of our choice."""

  def __init__(self, folder):
    self.checkout = folder / 'checkout'
    self.bin, self.pyenv = folder / 'bin', folder / 'pyenv'
    self.bin.mkdir()
    for name in (
      '.ci/run',
      'setup.py',
      'tools/find_python.sh',
      'tools/setup_venv.sh',
    ):
      (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, self.checkout / name)
    # Nothing else, so that no Python of this machine is found.
    for name in ('bash', 'cat', 'cmp', 'cp', 'dirname', 'head', 'ls', 'mkdir'):
      (self.bin / name).symlink_to(shutil.which(name))

  def add(self, path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)

  def bash(self, *arguments, **variables):
    return subprocess.run(
      ['bash', *arguments],
      cwd=self.checkout,
      env={'PATH': str(self.bin), 'PYENV_ROOT': str(self.pyenv)} | variables,
      capture_output=True,
      text=True,
    )

  def set_up(self, **variables):
    """Exit status, what was said, which interpreter made which folder."""
    script = 'set -euo pipefail; source tools/setup_venv.sh'
    found = self.bash('-c', script, **variables)
    made = {
      path.parent.name: path.read_text().strip()
      for path in self.checkout.glob('.venv*/made_by')
    }
    return found.returncode, found.stderr, made


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def test_the_usual_python_makes_the_usual_folder(machine):
  python = machine.bin / 'python3'
  machine.add(python, INTERPRETER.format(version='3.11'))
  assert machine.set_up() == (0, '', {'.venv': str(python)})


def test_a_named_python_has_a_folder_of_its_own(machine):
  machine.add(machine.bin / 'python3', INTERPRETER.format(version='3.11'))
  python = machine.bin / 'python3.12'
  machine.add(python, INTERPRETER.format(version='3.12'))
  made = {'.venv-3.12': str(python)}
  assert machine.set_up(PYTHON='python3.12') == (0, '', made)
  assert machine.set_up(PYTHON=str(python)) == (0, '', made)


def test_a_shim_that_does_not_run_gives_way_to_pyenvs_own(machine):
  machine.add(machine.bin / 'python3.12', SHIM)
  python = machine.pyenv / 'versions/3.12.1/bin/python3.12'
  machine.add(python, INTERPRETER.format(version='3.12'))
  code, said, made = machine.set_up(PYTHON='python3.12')
  assert (code, made) == (0, {'.venv-3.12': str(python)})
  assert said == (
    'PYTHON=python3.12 does not run (pyenv: python3.12: command not found); '
    f'{python} is taken.\n'
  )


def test_an_old_python_gives_way_to_a_newer_one(machine):
  machine.add(machine.bin / 'python3', INTERPRETER.format(version='3.10'))
  machine.add(machine.bin / 'python3.12', SHIM)
  python = machine.pyenv / 'versions/3.13.0/bin/python3.13'
  machine.add(python, INTERPRETER.format(version='3.13'))
  assert machine.set_up() == (0, '', {'.venv': str(python)})


@pytest.mark.parametrize(
  'text, named, reason',
  [
    (None, 'python3.12', 'is not there'),
    (INTERPRETER.format(version='3.10'), 'python3.12', 'is Python 3.10'),
    (
      SHIM,
      'python3.12',
      'does not run (pyenv: python3.12: command not found)',
    ),
  ],
)
def test_the_reason_is_one_sentence(machine, text, named, reason):
  if text:
    machine.add(machine.bin / named, text)
  assert machine.set_up(PYTHON=named) == (
    1,
    f'error: PYTHON={named} {reason}; Python 3.11 or newer is needed.\n',
    {},
  )


def test_without_any_python_it_says_how_to_name_one(machine):
  code, said, made = machine.set_up()
  assert (code, made) == (1, {})
  assert said.startswith(
    'error: Python 3.11 or newer is needed; python3 is not there. Install one, '
    'or name it: PYTHON=/path/to/python3.11 bash '
  )
  assert len(said.splitlines()) == 1


# Stands in for tools/test.sh: notes with which Python and flags it is called.
TEST = """#!/bin/bash
echo "PYTHON=${PYTHON:-} $*"
[[ ${FAIL:-} != "${PYTHON:-}" ]]
"""


def test_ci_runs_the_tests_with_a_newer_python_too(machine):
  machine.add(machine.checkout / 'tools/test.sh', TEST)
  machine.add(machine.bin / 'python3.12', SHIM)
  python = machine.pyenv / 'versions/3.12.1/bin/python3.12'
  machine.add(python, INTERPRETER.format(version='3.12'))
  found = machine.bash('.ci/run', FAIL='none')
  assert found.returncode == 0, found.stderr
  lines = [
    'PYTHON= ',
    'PYTHON= --tpu',
    'PYTHON= --torture --rounds=20 --flips=50',
    f'PYTHON={python} ',
  ]
  assert found.stdout.splitlines() == lines
  assert machine.bash('.ci/run', FAIL=str(python)).returncode == 1


def test_ci_says_so_where_there_is_no_newer_python(machine):
  machine.add(machine.checkout / 'tools/test.sh', TEST)
  found = machine.bash('.ci/run', FAIL='none')
  assert found.returncode == 0, found.stderr
  assert found.stdout.splitlines()[3:] == [
    'There is no Python 3.12 or newer on this machine: the tests were not run '
    'with the newest JAX.'
  ]


def test_ci_fails_where_a_test_does(machine):
  machine.add(machine.checkout / 'tools/test.sh', TEST)
  found = machine.bash('.ci/run', FAIL='')
  assert found.returncode == 1
  assert found.stdout.splitlines() == ['PYTHON= ']
