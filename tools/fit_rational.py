"""Fits the initial coefficients of the rational activations.

  python tools/fit_rational.py                          # all, prints a table
  python tools/fit_rational.py --degrees 9/8 --approximates gelu tanh

writes `t5x_variants/activations/rational_fitted.json` (keeping the rows it
does not fit anew). A laptop needs about ten seconds.

For degrees m/n it seeks P(x) / Q(x) with P of degree m and
Q = 1 + sum_j b_2j x^(2j), b_2j >= 0, 2j <= n, that is nearest to the function
in the least squares sense on an even grid over [-8, 8]. Such a Q is the
denominator of version A and, inside |.|, of B, C and D too, so one fit serves
all of them; and nothing is lost by it: relu, leaky_relu, gelu and swish are
c x plus an even function and tanh and sigmoid odd about a constant, so their
best rational functions have an even Q. Given Q, the best P is a linear least
squares problem, so only log(b_2j), one to four numbers, are searched for
(Nelder-Mead, from several starts).

[-8, 8] is wider than the published [-3, 3] so that what a Transformer's
pre-activations reach lies inside; the printed table shows what this costs in
the middle and how the tails stand at 10 and 30. They cannot be right for
ever: see t5x_variants/activations/rational.py.
"""

import argparse
import json
import re
import sys

import numpy as np
from scipy import optimize

from t5x_variants import errors
from t5x_variants.activations import rational

RANGE = 8.0
DEGREES = ('3/2', '5/4', '7/6')
FUNCTIONS = {
  'gelu': lambda x: (
    x * _sigmoid(2.0 * np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))
  ),
  'relu': lambda x: np.maximum(x, 0.0),
  'leaky_relu': lambda x: np.where(x < 0, 0.01 * x, x),
  'swish': lambda x: x * _sigmoid(x),
  'tanh': np.tanh,
  'sigmoid': lambda x: _sigmoid(x),
}


def _sigmoid(x):
  return 0.5 * (1.0 + np.tanh(0.5 * x))


def evaluate(numerator, denominator, x):
  """P(x) / (1 + sum_k b_k x^k), b_1 first."""
  return np.polyval(numerator[::-1], x) / np.polyval(
    [*denominator[::-1], 1.0], x
  )


def fit(function, m: int, n: int, limit: float = RANGE):
  """Returns the numerator [m + 1] and denominator [n] nearest to function."""
  # In x / limit, so that the normal equations are well conditioned.
  x = np.linspace(-1.0, 1.0, 2001)
  y = function(limit * x)
  powers = x[:, None] ** np.arange(m + 1)
  even = x[:, None] ** np.arange(2, n + 1, 2)

  def numerator(logs):
    basis = powers / (1.0 + even @ np.exp(logs))[:, None]
    a, *_ = np.linalg.lstsq(basis, y, rcond=None)
    return a, basis @ a - y

  def loss(logs):
    return np.log(np.mean(numerator(logs)[1] ** 2))

  count = even.shape[1]
  logs = np.zeros(0)
  if count:
    starts = [np.linspace(s, 2.0 * s, count) for s in (0.5, 1.5, 2.5, 3.5)]
    found = [
      optimize.minimize(
        loss,
        start,
        method='Nelder-Mead',
        options={'maxiter': 4000, 'xatol': 1e-9, 'fatol': 1e-12},
      )
      for start in starts
    ]
    logs = min(found, key=lambda result: result.fun).x
  b = np.zeros(n)
  b[1::2] = np.exp(logs)
  a, _ = numerator(logs)
  return a / limit ** np.arange(m + 1), b / limit ** np.arange(1, n + 1)


def report(form: str, name: str, row, limit: float = RANGE) -> str:
  """One line of the table: errors inside, values outside."""
  a, b = row['numerator'], row['denominator']

  def worst(bound):
    x = np.linspace(-bound, bound, 20001)
    return np.max(np.abs(evaluate(a, b, x) - FUNCTIONS[name](x)))

  tails = evaluate(a, b, np.asarray([-30.0, -10.0, 10.0, 30.0]))
  return (
    f'{form:5} {name:11} {worst(3.0):9.1e} {worst(limit):9.1e} '
    + ' '.join(f'{value:9.3f}' for value in tails)
  )


def write(table, path):
  """Writes the table, one coefficient vector a line."""
  text = json.dumps(table, indent=2, sort_keys=True)
  text = re.sub(r'\[[^\]]*\]', lambda m: re.sub(r'\s+', ' ', m.group()), text)
  path.write_text(text.replace('[ ', '[').replace(' ]', ']') + '\n')


def _degrees(form):
  if not re.fullmatch(r'\d+/\d+', form):
    raise errors.UserError(
      f'degrees {form!r}: write numerator/denominator, such as 5/4'
    )
  return tuple(map(int, form.split('/')))


def main(arguments=None):
  """Fits, prints the table and writes it."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--degrees', nargs='+', default=DEGREES, metavar='M/N')
  parser.add_argument(
    '--approximates', nargs='+', default=list(FUNCTIONS), choices=FUNCTIONS
  )
  parser.add_argument(
    '--dry-run', action='store_true', help='print, write nothing'
  )
  options = parser.parse_args(arguments)
  degrees = {form: _degrees(form) for form in options.degrees}
  path = rational.path('fitted')
  table = json.loads(path.read_text()) if path.exists() else {}
  print(
    f'{"m/n":5} {"function":11} {"[-3, 3]":>9} {f"+-{RANGE:g}":>9} '
    + ' '.join(f'{f"f({x})":>9}' for x in (-30, -10, 10, 30))
  )
  for form, (m, n) in degrees.items():
    for name in options.approximates:
      a, b = fit(FUNCTIONS[name], m, n)
      # Nine digits are float32's, and do not differ between machines.
      row = {
        'numerator': [float(f'{value:.8e}') for value in a],
        'denominator': [float(f'{value:.8e}') for value in b],
      }
      table.setdefault(form, {})[name] = row
      print(report(form, name, row), flush=True)
  if not options.dry_run:
    write(table, path)


if __name__ == '__main__':
  try:
    main()
  except errors.UserError as error:
    sys.exit(f'fit_rational: {error}')
