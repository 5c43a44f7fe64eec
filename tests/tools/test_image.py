"""The Dockerfile, by its text: no image is built here."""

import fnmatch
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def instructions():
  """Of the Dockerfile, as (word, rest), in order."""
  text = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
  text = re.sub(r'^#.*\n', '', text, flags=re.M).replace('\\\n', ' ')
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def rest_of(word):
  return [rest for name, rest in instructions() if name == word]


def is_sent(path):
  """Whether a file goes to the builder: the last pattern that fits decides."""
  sent = True
  for pattern in (ROOT / '.dockerignore').read_text().split():
    keep = pattern.startswith('!')
    pattern = pattern.removeprefix('!')
    parts = path.split('/')
    ends = ['/'.join(parts[:n]) for n in range(1, len(parts) + 1)]
    if pattern.startswith('**/'):
      fits = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
    else:
      fits = any(fnmatch.fnmatch(end, pattern) for end in ends)
    if fits:
      sent = keep
  return sent


def test_the_image_has_what_it_copies():
  copied = [
    name.rstrip('/') for line in rest_of('COPY') for name in line.split()[:-1]
  ]
  assert {'setup.py', 'gin', 't5x_variants'} <= set(copied)
  for name in copied:
    assert (ROOT / name).exists() and is_sent(name), name
  assert not rest_of('ADD')


def test_neither_keys_nor_caches_are_sent_to_the_builder():
  for path in ('gin/models/tiny.gin', 't5x_variants/data/tasks/registry.py'):
    assert is_sent(path)
  for path in (
    '.env',
    '.git/config',
    'key.json',
    'gin/.env',
    't5x_variants/data/.netrc',
    't5x_variants/__pycache__/train.pyc',
  ):
    assert not is_sent(path), path


def test_the_image_does_not_run_as_root():
  words = [word for word, _ in instructions()]
  # By number: Kubernetes' runAsNonRoot does not believe a name.
  users = rest_of('USER')
  assert re.fullmatch(r'[1-9]\d*:[1-9]\d*', users[-1])
  # Installing needs root, running does not.
  assert words.index('USER') > max(
    number for number, word in enumerate(words) if word in ('RUN', 'COPY')
  )


def test_any_user_may_write_the_home_and_relative_runs():
  """With docker run --user, which fits the owner of a mounted MODEL_DIR."""
  (home,) = re.findall(r'\bHOME=(\S+)', ' '.join(rest_of('ENV')))
  commands = ' '.join(rest_of('RUN'))
  assert f'chmod 1777 {home}' in commands
  assert '--mode=1777 runs' in commands
  # Without an entry in the password file the user's name comes from here.
  assert re.search(r'\bUSER=\w+', ' '.join(rest_of('ENV')))
