"""Which implementation of the block runs, how it is cut, what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import mlp_block
from ffn_cases import call

from t5x_variants import activations, chips, errors, kernels
from t5x_variants.kernels import dispatch, tiles


def primitives(function):
  return str(jax.make_jaxpr(function)())


def test_a_cpu_takes_xla_and_a_name_is_kept():
  assert 'pallas_call' not in primitives(lambda: call(implementation=None))
  assert 'pallas_call' in primitives(call)
  # A constraint of the hidden activations is no reason against the kernels.
  assert 'pallas_call' in primitives(lambda: call(constrain=lambda h: h))


def test_the_table_chooses(monkeypatch):
  tokens, d, f = dispatch.TOKENS, 256, 512

  def choose(
    kind='TPU v6 lite', mesh=(1, 1), gated=False, save=None, tokens=tokens, f=f
  ):
    return dispatch._choice(
      kind,
      jax.sharding.AbstractMesh(mesh, ('data', 'model')),
      activations.get('gelu'),
      gated,
      save,
      jax.ShapeDtypeStruct((4, tokens // 4, d), jnp.bfloat16),
      jax.ShapeDtypeStruct((f, d), jnp.bfloat16),
    )

  monkeypatch.setattr(dispatch, 'TABLE', frozenset())
  assert choose() == 'xla'
  row = ('v6e', 'gelu', False, None, d, f)
  monkeypatch.setattr(dispatch, 'TABLE', frozenset({row}))
  assert choose() == 'pallas'
  # What counts is a device's share.
  assert choose(mesh=(2, 4), tokens=2 * tokens, f=4 * f) == 'pallas'
  for other in (
    {'gated': True},
    {'save': 'inputs'},
    {'kind': 'TPU v5 lite'},
    {'kind': 'cpu'},
    {'tokens': tokens - 4},
    {'mesh': (2, 1)},
    {'mesh': (1, 2)},
  ):
    assert choose(**other) == 'xla', other


def test_dropout_goes_to_xla_and_is_said_once(caplog):
  dispatch._say_once.cache_clear()
  with caplog.at_level(logging.WARNING, 't5x_variants'):
    for _ in range(2):
      program = primitives(lambda: call(on_hidden=lambda h: 0 * h))
      assert 'pallas_call' not in program
  assert len(caplog.records) == 1
  assert 'have no dropout' in caplog.text


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'implementation': 'triton'}, "'triton': use None or one of.*'pallas'"),
    ({'save': 'some'}, "'some': use None or one of.*'inputs'"),
    ({'save': 'all'}, "cannot run .* save='all' is autodiff's"),
    (
      {'implementation': 'pallas'},
      "needs a TPU of .*TPU v5e.*'cpu'.*'xla' can",
    ),
    ({'dtype': 'float16'}, 'dtype float16; .*bfloat16 or float32'),
    ({'shape': (0, 20)}, r'\(0, 20\): there are no tokens'),
    ({'activation': 'gelu'}, "'gelu', which is no record .*activations.get"),
    (
      {
        'name': 'polyrelu',
        'coefficients': {'weight': np.ones(2), 'bias': [0.0]},
      },
      r"shapes {'weight': \(3,\).*got {'weight': \(2,\)",
    ),
  ],
)
def test_a_slip_is_named(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    call(**arguments)


def test_float64_is_for_xla():
  with jax.enable_x64(True):
    assert call(implementation='xla', dtype='float64').dtype == jnp.float64
    with pytest.raises(errors.UserError, match='x has dtype float64'):
      call(dtype='float64')


def test_an_unaligned_row_is_refused():
  activation = activations.get('polynorm')
  x, w = jnp.ones((4, 128)), jnp.ones((128, 200))
  with pytest.raises(errors.UserError, match=r'F = 200, .*multiple of 128'):
    kernels.ffn(
      x,
      w,
      w.T,
      activation.init(),
      activation,
      False,
      implementation='pallas_interpret',
    )


def choose(d, f, chip, gated=True, rowwise=False, tokens=65536):
  return tiles.choose(
    tokens,
    d,
    f,
    'bfloat16',
    gated=gated,
    rowwise=rowwise,
    save='inputs',
    chip=chips.CHIPS[chip],
  )


def test_tiles_shrink_until_they_fit_or_say_what_would():
  assert choose(768, 2048, 'TPU v6e').rows == 512
  assert choose(768, 2048, 'TPU v5e').rows == 256
  assert choose(1024, 2816, 'TPU v6e').rows == 512
  # What does not fit whole is split.
  assert choose(768, 2048, 'TPU v6e').parts == 1
  cut = choose(2048, 5120, 'TPU v6e')
  assert cut.parts == 2 and cut.width * cut.parts <= 5120
  assert cut.vmem <= chips.CHIPS['TPU v6e'].vmem
  # Few tokens in tiles of whole sublanes.
  few = choose(2048, 2688, 'TPU v6e', tokens=400)
  assert few.rows == 208 and few.rows % few.chunk[0] == 0
  # Rows of F cannot be; and of D nothing is.
  with pytest.raises(errors.UserError, match='`model` axis of 2 or more'):
    choose(2048, 5120, 'TPU v6e', rowwise=True)
  with pytest.raises(errors.UserError, match='no sharding of the width'):
    choose(2**18, 512, 'TPU v6e')


def test_the_block_passes_its_choices_on(monkeypatch):
  seen = []
  monkeypatch.setattr(
    kernels, 'ffn', lambda x, *_, **kwargs: seen.append(kwargs) or x
  )
  x = jnp.ones((2, 3, 8))
  block = mlp_block(8, implementation='pallas', save='inputs', dropout_rate=0.5)
  variables = block.init(jax.random.key(0), x, deterministic=True)
  block.apply(variables, x, deterministic=True)
  block.apply(variables, x, rngs={'dropout': jax.random.key(1)})
  initial, still, dropped = seen
  assert initial['implementation'] == 'xla'
  assert still['implementation'] == 'pallas' and still['save'] == 'inputs'
  assert still['on_hidden'] is None and dropped['on_hidden'] is not None
