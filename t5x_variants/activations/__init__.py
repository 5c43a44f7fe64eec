"""Activations of the feed-forward block: pure functions and one table.

`get(name)` gives an `Activation`, `names()` all names, `register(...)` adds
one. Options are chosen on the makers `rational.rational`, `polycom.polynorm`
and `polycom.polyrelu`, which return an `Activation` too.
"""

from t5x_variants.activations import fixed, polycom, rational, registry
from t5x_variants.activations.registry import (
  Activation,
  define,
  get,
  names,
  register,
)

__all__ = [
  'Activation',
  'define',
  'fixed',
  'get',
  'names',
  'polycom',
  'rational',
  'register',
  'registry',
]

_GELU = 'Hendrycks and Gimpel 2016, Gaussian Error Linear Units'

_TABLE = (
  define(
    'relu',
    fixed.relu,
    paper='Nair and Hinton 2010, Rectified Linear Units Improve Restricted '
    'Boltzmann Machines',
  ),
  define('gelu', fixed.gelu, paper=f'{_GELU}, arXiv:1606.08415 (tanh form)'),
  define('gelu_exact', fixed.gelu_exact, paper=f'{_GELU}, arXiv:1606.08415'),
  define(
    'swish',
    fixed.swish,
    paper='Ramachandran et al. 2017, Searching for Activation Functions, '
    'arXiv:1710.05941',
  ),
  define(
    'sigmoid',
    fixed.sigmoid,
    paper='Dauphin et al. 2016, Language Modeling with Gated Convolutional '
    'Networks, arXiv:1612.08083 (the gate of GLU)',
  ),
  define(
    'linear',
    fixed.linear,
    paper='Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202 '
    '(the gate of Bilinear)',
  ),
  define(
    'squared_relu',
    fixed.squared_relu,
    paper='So et al. 2021, Primer: Searching for Efficient Transformers, '
    'arXiv:2109.08668',
  ),
  define(
    'xielu',
    fixed.xielu,
    paper='Huang and Schlag 2024, Deriving Activation Functions Using '
    'Integration, arXiv:2411.13010',
    initial=fixed.XIELU_INITIAL,
  ),
  rational.rational(),
  polycom.polyrelu(),
  polycom.polynorm(),
)

for _activation in _TABLE:
  register(_activation)
