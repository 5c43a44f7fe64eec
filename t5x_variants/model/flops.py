"""FLOPs of a T5 by formula, and their share of what a TPU can do.

Counted are the matmuls that the model means, two FLOPs a multiplication and
addition (Chowdhery et al. 2022, PaLM, 2204.02311, appendix B). Not counted is
what a program does besides: layers computed again (remat), embeddings looked
up (by a matmul with ones and zeros or not), norms, softmax, activations.
Letters: D emb_dim, J num_heads * head_dim, F the block's real width, n its
matrices (3 gated, 2 not), V vocab_size, E and T the lengths of a row of inputs
and of targets. Forward, a token and a layer:

  an input token, encoder    8 D J  +  4 E J  +  2 n D F
  the same, decoder layer    4 D J                          (keys and values)
  a target token, decoder    8 D J  +  4 T J                (self-attention)
                           + 4 D J  +  4 E J  +  2 n D F    (the inputs; block)
  a target token, once       2 D V                          (logits)

The backward pass costs twice the forward one. Every position of a row counts,
padding too, since it is computed; and every pair of positions, masked or not.
"""

import dataclasses

from t5x_variants import chips
from t5x_variants.model import network


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one batch.

  Attributes:
    encoder: for tokens of the inputs, their keys and values in the decoder's
      layers included.
    decoder: for tokens of the targets.
  """

  encoder: int
  decoder: int

  @property
  def total(self) -> int:
    """Both."""
    return self.encoder + self.decoder


def forward(
  config: network.T5Config, rows: int, inputs_length: int, targets_length: int
) -> Flops:
  """FLOPs of a forward pass over `rows` rows of these lengths.

  Args:
    config: the network's sizes.
    rows: of the batch, over all devices.
    inputs_length: tokens of a row of inputs.
    targets_length: tokens of a row of targets.
  """
  d, j = config.emb_dim, config.num_heads * config.head_dim
  block = 2 * (3 if config.feed_forward.gated else 2) * d * config.mlp_dim
  an_input = (
    config.num_encoder_layers * (8 * d * j + 4 * inputs_length * j + block)
    + config.num_decoder_layers * 4 * d * j
  )
  a_target = config.num_decoder_layers * (
    12 * d * j + 4 * (targets_length + inputs_length) * j + block
  ) + (2 * d * config.vocab_size)
  return Flops(
    rows * inputs_length * an_input, rows * targets_length * a_target
  )


def train_step(
  config: network.T5Config, rows: int, inputs_length: int, targets_length: int
) -> Flops:
  """FLOPs of a training step: three times `forward`, whatever is recomputed."""
  once = forward(config, rows, inputs_length, targets_length)
  return Flops(3 * once.encoder, 3 * once.decoder)


def mfu(
  flops: float, seconds: float, devices: int, device_kind: str
) -> float | None:
  """Model FLOPs utilisation: of what the devices can do, what the model used.

  Args:
    flops: of the work done, see `train_step`.
    seconds: that it took.
    devices: JAX devices that did it.
    device_kind: their kind.

  Returns:
    A fraction; None where the table has no such device.
  """
  chip = chips.CHIPS.get(device_kind)
  if chip is None:
    return None
  return flops / (seconds * devices * chip.device_peak)
