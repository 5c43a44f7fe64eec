"""A cloud of stand_in_gcloud.sh, and the launcher run against it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = ROOT / 'tools/tpu/launch_tpu.sh'
SETTINGS = {
  'NAME': 'first',
  'ZONE': 'us-west4-a',
  'ACCELERATOR': 'v5e-16',
  'BUCKET': 'pail',
}
FLAGS = ('--gin_file=gin/models/tiny.gin', '--gin.TRAIN_STEPS=20')


class Cloud:
  """The stand-in's state, and the launcher run against it."""

  def __init__(self, folder):
    self.launcher = LAUNCHER
    self.folder = folder / 'cloud'
    self.processes = []
    (self.folder / 'bucket').mkdir(parents=True)
    self.write('last', '20')
    self.bin = folder / 'bin'
    self.bin.mkdir()
    for name in ('gcloud', 'uv'):
      shutil.copy(ROOT / f'tests/support/stand_in_{name}.sh', self.bin / name)
      (self.bin / name).chmod(0o755)

  def write(self, name, text):
    (self.folder / name).write_text(text + '\n')

  def read(self, name):
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def plan(self, verb, *lines):
    self.write(f'plan-{verb}', '\n'.join(lines))

  def calls(self, *words):
    """The calls in which all words stand."""
    return [
      call for call in self.read('calls') if all(word in call for word in words)
    ]

  def start(self, *arguments, **settings):
    drop = {'PROJECT', 'SPOT', 'RUNTIME', 'MODULE'}
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env |= SETTINGS | {'POLL': '0.1', 'CALL_LIMIT': '20'} | settings
    env |= {'CLOUD': str(self.folder), 'PATH': f'{self.bin}:{env["PATH"]}'}
    process = subprocess.Popen(
      ['bash', self.launcher, *arguments],
      env={k: v for k, v in env.items() if v},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.processes.append(process)
    return process

  def launch(self, *arguments, **settings):
    """Exit status, stdout, stderr."""
    process = self.start(*arguments, **settings)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err

  def train(self, **settings):
    return self.launch('run', '--', *FLAGS, **settings)

  def wait_for(self, condition):
    for _ in range(2400):
      if condition():
        return
      time.sleep(0.05)
    raise AssertionError(self.read('calls'))


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  for process in cloud.processes:
    process.kill()
    process.communicate()
  for path in cloud.folder.glob('host*/t5x_variants/.tpu_run/pid'):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int(path.read_text().split()[0]), signal.SIGKILL)
