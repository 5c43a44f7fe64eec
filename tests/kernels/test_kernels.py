"""The feed-forward block's implementations against float64, and each other.

One suite over the whole activation table, gated and not. The kernels run
interpreted; odd sizes make every kind of padding happen, and small tiles make
several tiles, blocks of F and chunks.
"""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from ffn_cases import (
  NAMES,
  SAVES,
  SIGNED_ROOT,
  SMALL,
  all_forms,
  by_kernel,
  by_reference,
  distances,
  errors_of,
  operands,
  value_and_pulled,
)
from hypothesis import strategies
from jax.experimental.pallas import tpu as pltpu
from quick_jit import jit

from t5x_variants import activations, kernels
from t5x_variants.kernels import sharded, tiles
from t5x_variants.model import stacks

# Two blocks, one of 256 columns and one of 128.
RAGGED = tiles.Tiles(32, 256, (32, 128), 1, 0)


# Ungated, one of each kind; a gate is no matter of the formula.
UNGATED = ('gelu', 'rational', 'polynorm')


def check(activation, gated, functions, bar=4e-6, **sizes):
  """All errors against float64 are below a bar, in float32."""
  off = errors_of(activation, gated, 'float32', functions, **sizes)
  assert max(jax.tree.leaves(off)) < bar, off


over_the_table = pytest.mark.parametrize(
  'name, gated',
  [
    *((name, True) for name in NAMES),
    *(
      pytest.param(
        name, False, marks=() if name in UNGATED else pytest.mark.slow
      )
      for name in NAMES
    ),
  ],
)


@over_the_table
def test_equals_float64_in_float32(name, gated):
  activation = activations.get(name)
  check(activation, gated, all_forms(activation, gated))


@over_the_table
def test_is_no_worse_than_xla_in_bfloat16(name, gated):
  activation = activations.get(name)
  found = errors_of(activation, gated, 'bfloat16', all_forms(activation, gated))
  for save in SAVES:
    y, (dx, dw, dwo, dc) = found['pallas', save]
    kernel = (y, dx, dwo, max(dw))
    xla = []
    for form in ('all', save):
      y, (dx, dw, dwo, xla_dc) = found['xla', form]
      xla.append((y, dx, dwo, max(dw)))
    for one, *others in zip(kernel, *xla, strict=True):
      assert one < 1.15 * max(others) + 1e-4, (save, found)
    # XLA rounds what it stores, and does not where it fuses: which of its own
    # forms is the more exact differs by a factor of two between its versions.
    for one, other in zip(*xla, strict=True):
      assert other < 2.5 * one + 1e-4, (save, found)
    # z is never rounded for A: what is left is the float32 of the sums. For B
    # it is, as where XLA stores it.
    assert dc < (1e-5 if save == 'inputs' else 1.15 * xla_dc + 1e-3), found


def test_an_activation_of_this_test_has_a_kernel():
  def wave(z, c):
    return c['size'][0] * jnp.sin(c['pitch'][0] * z) + c['pitch'][1] * z

  activation = activations.define(
    'wave', wave, paper='2026', initial={'size': [0.5], 'pitch': [1.2, 0.1]}
  )
  check(activation, True, {s: by_kernel(activation, True, s) for s in SAVES})


# None is finite at 0 but for the root, whose derivative is not.
NOT_AT_ZERO = (
  SIGNED_ROOT,
  activations.define(
    'entropy',
    lambda z, c: c['size'][0] * z * jnp.log(z * z),
    paper='2026',
    initial={'size': [0.5]},
  ),
  activations.define(
    'whole_row',
    lambda z, c: z / jnp.sqrt(jnp.mean(z * z, -1, keepdims=True)),
    paper='2026',
    kind='rowwise',
  ),
)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('activation', NOT_AT_ZERO, ids=lambda a: a.name)
def test_no_activation_is_computed_at_padded_zeros(activation, gated):
  """10 tokens in a tile of 32; F = 200 in 256 columns, but for whole rows."""
  forms = {save: by_kernel(activation, gated, save) for save in SAVES}
  check(activation, gated, forms, 1e-4, shape=(10, 20))


@hypothesis.settings(max_examples=4)
@hypothesis.given(
  tokens=strategies.integers(1, 70),
  d=strategies.integers(1, 140),
  f=strategies.integers(1, 300),
  case=strategies.sampled_from(
    [('rational', False), ('swish', True), ('polynorm', False)]
  ),
  save=strategies.sampled_from(SAVES),
)
def test_any_shape(tokens, d, f, case, save):
  activation = activations.get(case[0])
  functions = {'pallas': by_kernel(activation, case[1], save, cut=None)}
  check(activation, case[1], functions, 2e-5, shape=(tokens, d), f=f)


@pytest.mark.parametrize('save', SAVES)
@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('name', UNGATED)
def test_has_no_race_in_the_memory_model(name, gated, save):
  """Without coefficients, with, and by rows: the formula makes no race."""
  activation = activations.get(name)
  interpret = pltpu.InterpretParams(detect_races=True)
  kernel = by_kernel(activation, gated, save, interpret=interpret)
  off = errors_of(activation, gated, 'bfloat16', {'pallas': kernel})
  assert max(jax.tree.leaves(off)) < 4e-2, off
  assert not _races_found()


def _races_found():
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call as module

  return module.races is not None and module.races.races_found


@pytest.mark.parametrize('save', SAVES)
def test_a_last_block_may_be_narrower(save):
  activation = activations.get('swish')
  functions = {'ragged': by_kernel(activation, True, save, cut=RAGGED)}
  check(activation, True, functions, f=300)


@pytest.mark.parametrize(
  'name, gated, save', [('rational', True, 'inputs'), ('gelu', False, SAVES[1])]
)
def test_parts_of_f_add_up(name, gated, save):
  # F = 300 is padded to 384: three parts, the last of them mostly padding.
  cut = dataclasses.replace(SMALL, parts=3)
  activation = activations.get(name)
  block = sharded.Block(
    activation, gated, save, tiles.INTERPRETED, None, True, cut
  )
  functions = {'parts': functools.partial(sharded.ffn, block)}
  check(activation, gated, functions, f=300)
  # Sums of parts are rounded once, as of one.
  whole = by_kernel(activation, gated, save)
  found = errors_of(
    activation, gated, 'bfloat16', functions | {'whole': whole}, f=300
  )
  for one, other in zip(
    jax.tree.leaves(found['parts']),
    jax.tree.leaves(found['whole']),
    strict=True,
  ):
    assert one < 1.05 * other + 1e-6, found


def test_two_cores_share_the_tokens():
  activation = activations.get('polyrelu')
  block = sharded.Block(
    activation, True, 'inputs', tiles.INTERPRETED, None, True
  )
  cut = tiles.Tiles(16, 128, (16, 128), 2, 0)
  functions = {'two': functools.partial(sharded.ffn, block._replace(tiles=cut))}
  check(activation, True, functions)


# What is stored for the backward pass.


def saved_bytes(function, primals):
  """Bytes kept that are not operands themselves."""
  kept = jax.eval_shape(lambda *p: jax.vjp(function, *p)[1], *primals)
  total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept))
  own = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(primals))
  return total - own


@over_the_table
def test_stores_what_save_says(name, gated):
  activation = activations.get(name)
  primals, _ = operands(activation, gated, dtype='bfloat16')
  z = 5 * 9 * primals[2].shape[0] * 2
  for make in (by_reference, by_kernel):
    stored = {
      s: saved_bytes(make(activation, gated, s), primals) for s in SAVES
    }
    assert stored == {'inputs': 0, 'preactivations': z * (1 + gated)}


@pytest.mark.parametrize('implementation', ['xla', 'pallas_interpret'])
@pytest.mark.parametrize('policy', stacks.REMAT_POLICIES)
def test_a_checkpoint_policy_keeps_to_save(policy, implementation):
  activation = activations.get('rational')
  primals, _ = operands(activation, False)
  x, (wi,), wo, coefficients = primals

  def stored(save):
    def run(x, wi, wo, coefficients):
      # A matmul's worth of work before and after, as in a layer.
      y = kernels.ffn(
        jnp.sin(x),
        wi,
        wo,
        coefficients,
        activation,
        False,
        save=save,
        implementation=implementation,
      )
      return jnp.sin(y)

    if policy != 'none':
      run = jax.checkpoint(run, policy=stacks.REMAT_POLICIES[policy])
    return saved_bytes(run, (x, wi, wo, coefficients))

  z = 5 * 9 * wo.shape[0] * 4
  more = stored('preactivations') - stored('inputs')
  assert more == (0 if policy == 'full' else z)


def test_dropout_under_a_written_derivative():
  activation = activations.get('swish')
  primals, dy = operands(activation, True)

  def run(save, primals, key):
    def dropout(hidden):
      return hidden * jax.random.bernoulli(key, 0.5, hidden.shape)

    form = by_reference(activation, True, save, on_hidden=dropout)
    return value_and_pulled(form, primals, dy)

  plain, *others = (
    jit(functools.partial(run, save))(primals, jax.random.key(3))
    for save in ('all', *SAVES)
  )
  for other in others:
    assert max(jax.tree.leaves(distances(other, plain))) < 4e-6
