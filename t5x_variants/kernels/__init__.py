"""The feed-forward block as one operation, whatever carries it out.

`ffn` is the seam between the model and its implementations: the model calls
`kernels.ffn` and nothing below it.

  operands.py   what fits together; the errors
  reference.py  plain JAX ('xla'): what every implementation must equal
  pallas_tpu.py one TPU kernel forward, one backward ('pallas')
  tiles.py      how the kernels cut the block, and the VMEM that takes
  sharded.py    derivative, mesh and padding around the kernels
  meshes.py     the mesh the program is for
  dispatch.py   `ffn`: which of them runs
"""

from t5x_variants.kernels.dispatch import IMPLEMENTATIONS, ffn
from t5x_variants.kernels.operands import SAVES
from t5x_variants.kernels.sharded import PREACTIVATIONS

__all__ = ['IMPLEMENTATIONS', 'PREACTIVATIONS', 'SAVES', 'ffn']
