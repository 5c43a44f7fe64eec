"""Bytes moved, counted from HLO text: of JAX's own programs, and by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick_jit import jit

from t5x_variants.distributed import partitioning
from t5x_variants.tpu import collectives


def moved_by(function, shape, in_spec, out_spec):
  mesh = partitioning.make_mesh(2)
  x = jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, in_spec)
  )
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False
  )
  compiled = jit(mapped).lower(x).compile()
  return collectives.moved(compiled.as_text())


@pytest.mark.parametrize(
  'kind, function, out_spec, size',
  [
    # Of [64, 6] float32, 16 rows lie on a device.
    ('all-reduce', lambda x: lax.psum(x, 'data'), P(), 16 * 6 * 4),
    (
      'all-gather',
      lambda x: lax.all_gather(x, 'data', tiled=True),
      P(),
      64 * 6 * 4,
    ),
    (
      'reduce-scatter',
      lambda x: lax.psum_scatter(x, 'data', tiled=True),
      P('data'),
      16 * 6 * 4,
    ),
    (
      'collective-permute',
      lambda x: lax.ppermute(x, 'data', [(0, 1), (1, 0)]),
      P('data'),
      16 * 6 * 4,
    ),
  ],
)
def test_a_collective_counts_its_tensor(kind, function, out_spec, size):
  found = moved_by(function, (64, 6), P('data'), out_spec)
  assert found == collectives.Moved({kind: size}, 0)


def test_a_loop_counts_its_turns():
  def body(carry, _):
    def inner(c, _):
      return lax.psum(jnp.sin(c), 'data') + c, None

    return lax.scan(inner, jnp.cos(carry), None, length=3)[0], None

  def scanned(x):
    return lax.scan(body, x, None, length=5)[0]

  found = moved_by(scanned, (8, 6), P(None), P(None))
  assert found == collectives.Moved({'all-reduce': 5 * 3 * 8 * 6 * 4}, 0)


def test_a_loop_that_depends_on_data_counts_once():
  def run(x):
    def more(c):
      return jnp.sum(c) < 1e3

    return lax.while_loop(more, lambda c: lax.psum(c, 'data') + 1, x)

  found = moved_by(run, (8, 6), P(None), P(None))
  assert found.bytes == {'all-reduce': 8 * 6 * 4} and found.unknown_loops == 1


TPU = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cond (p: (s32[], bf16[8,4])) -> pred[] {
  %end = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT, backend_config={}
}

%moves (q: bf16[8,4]) -> bf16[16,4] {
  %q = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%q), dimensions={0}
}

%body (p.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p.1), index=1
  %fused = bf16[16,4]{1,0} fusion(%x), kind=kCustom, calls=%moves
  %start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) \
collective-permute-start(%x), source_target_pairs={{0,1}}
  %done = bf16[8,4]{1,0} collective-permute-done(%start)
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%p.1, %done)
}

ENTRY %main (x.1: bf16[8,4], y: f32[2]) -> bf16[8,4] {
  %x.1 = bf16[8,4]{1,0} parameter(0)
  %y = f32[2]{0} parameter(1)
  %two = s32[]{:T(128)} constant(2)
  %r = (f32[2]{0}, bf16[8,4]{1,0}) all-reduce(%y, %x.1), to_apply=%add
  %init = (s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%two, %x.1)
  %loop = (s32[], bf16[8,4]) while(%init), condition=%cond, body=%body
  ROOT %out = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_tpu_s_text():
  """Layouts with parentheses, tuples, a fused and an asynchronous one."""
  found = collectives.moved(TPU)
  assert found.unknown_loops == 0
  assert found.bytes == {
    'all-gather': 10 * 16 * 4 * 2,
    'all-reduce': 2 * 4 + 8 * 4 * 2,
    'collective-permute': 10 * 8 * 4 * 2,
  }


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no program'):
    collectives.moved('nothing')
