"""The files below gin/, and the commands in their heads."""

import pathlib
import re
import shlex

from t5x_variants.cli import command_line, gin_utils

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(
  str(file.relative_to(ROOT)) for file in (ROOT / 'gin').rglob('*.gin')
)


def kind(file):
  return pathlib.PurePath(file).parent.name


def of_kind(name):
  return [file for file in FILES if kind(file) == name]


def stem(file):
  return pathlib.PurePath(file).stem


def stems(name):
  return [stem(file) for file in of_kind(name)]


def head(file):
  """The comment a file opens with, without the number signs."""
  lines = []
  for line in (ROOT / file).read_text(encoding='utf-8').splitlines():
    if not line.startswith('#'):
      break
    lines.append(line.removeprefix('#').removeprefix(' '))
  return '\n'.join(lines)


def commands(file):
  """The commands in a file's head, each as a list of arguments."""
  text = re.sub(r'\\\n\s*', ' ', head(file))
  return [shlex.split(found) for found in re.findall(r'python3? -m .*', text)]


def for_t5x(file):
  return any(c[2].split('.')[0] == 't5x' for c in commands(file))


def parse(*files, bindings=()):
  gin_utils.parse([str(file) for file in files], bindings)


def values_of(words):
  """The gin files and the bindings of a command."""
  arguments = command_line.rewrite_arguments(words[3:])
  return (
    [
      word.removeprefix(f'--{flag}=')
      for word in arguments
      if word.startswith(f'--{flag}=')
    ]
    for flag in ('gin_file', 'gin_bindings')
  )
