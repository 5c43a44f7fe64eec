"""The feed-forward block as one operation, whatever carries it out.

`ffn` is the seam between the model and its implementations: the model calls
`kernels.ffn` and nothing below it. Today there is one implementation, the
plain JAX form of `reference.py`, which is also the form every other one is
tested against.
"""

from t5x_variants.kernels.reference import ffn

__all__ = ['ffn']
