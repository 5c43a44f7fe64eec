"""Packaging: bounds rather than pins, and the gin tree inside the wheel."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
README = HERE / 'README.md'
INIT = HERE / 't5x_variants' / '__init__.py'

setup(
  name='t5x-variants',
  version=re.findall("__version__ = '(.+)'", INIT.read_text('utf-8'))[0],
  description=(
    'T5 with gated, rational and polynomial feed-forward blocks, in JAX '
    'and Flax for TPUs.'
  ),
  long_description=README.read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[
    *find_packages(include=['t5x_variants', 't5x_variants.*']),
    't5x_variants.gin',
  ],
  package_dir={'t5x_variants.gin': 'gin'},
  package_data={
    't5x_variants': ['**/*.json', 'py.typed'],
    't5x_variants.gin': ['**/*.gin'],
  },
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8',
    'etils>=1.9',
    'flax>=0.10.6',
    'gin-config>=0.5',
    'grain>=0.2.18',
    # Of tensorflow-datasets, to download, which forgets to say so.
    'importlib_resources>=6.0',
    'jax>=0.7',
    'jaxtyping>=0.2.36',
    'numpy>=1.26',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.20',
    'rouge-score>=0.1.2',
    'sacrebleu>=2.4',
    'safetensors>=0.5',
    'scikit-learn>=1.5',
    'scipy>=1.11',
    'seqio>=0.0.19',
    'tensorboardX>=2.6.2',
    'tensorflow>=2.16',
    'tensorflow-datasets>=4.9.6',
    'tensorstore>=0.1.70',
  ],
  extras_require={
    # Not for export_hf itself: to load what it wrote, and for its tests.
    'hf': ['torch>=2.6', 'transformers>=5'],
    # The pictures: python -m t5x_variants.plot.
    'plot': ['matplotlib>=3.8'],
    # What checkouts of google-research/t5x and its own need besides.
    't5x': [
      'cached_property>=2',
      'clu>=0.0.12',
      'fiddle>=0.3',
      'tensorboard>=2.16',
    ],
    # On a TPU virtual machine; and for the TPU compiler without one. JAX names
    # the libtpu that it goes with.
    'tpu': ['jax[tpu]>=0.7'],
    'test': [
      'beartype>=0.20',
      'hypothesis>=6.100',
      'matplotlib>=3.8',
      'mypy>=1.15',
      'psutil>=5.9',
      'pytest>=8',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'ruff>=0.6',
    ],
  },
)
