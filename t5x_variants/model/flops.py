"""FLOPs of a T5 by formula, and what a TPU chip can do.

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

from t5x_variants.model import network

GIB = 2**30


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
  block = 2 * (3 if config.gated else 2) * d * config.mlp_dim
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


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU generation.

  Attributes:
    name: as in the names of slices.
    peak: bfloat16 FLOP/s of a chip.
    hbm: bytes of a chip, as the vendor gives them.
    bandwidth: HBM bytes a second of a chip.
    devices: how many JAX devices a chip is.
    usable: HBM bytes of a device that the compiler lets a program have.
  """

  name: str
  peak: float
  hbm: int
  bandwidth: float
  devices: int
  usable: int

  @property
  def device_peak(self) -> float:
    """bfloat16 FLOP/s of a JAX device: what `mfu` divides by."""
    return self.peak / self.devices


# cloud.google.com/tpu/docs: v4, v5e, v5p, v6e and tpu7x, 'peak compute per chip
# (bf16)', 'HBM capacity' and 'HBM bandwidth'. `usable` is what libtpu 0.0.42
# says of a program that is too large: 'exceeds available HBM (15.75G)'.
_V4 = Chip('v4', 275e12, 32 * GIB, 1228e9, 1, int(30.75 * GIB))
_V5E = Chip('v5e', 197e12, 16 * GIB, 819e9, 1, int(15.75 * GIB))
_V5P = Chip('v5p', 459e12, 95 * GIB, 2765e9, 1, int(95.74 * GIB))
_V6E = Chip('v6e', 918e12, 32 * GIB, 1638e9, 1, int(31.25 * GIB))
_7X = Chip('7x', 2307e12, 192 * GIB, 7380e9, 2, int(94.75 * GIB))

# By the name JAX gives the device (`device_kind`).
CHIPS = {
  'TPU v4': _V4,
  'TPU v5 lite': _V5E,
  'TPU v5e': _V5E,
  'TPU v5': _V5P,
  'TPU v5p': _V5P,
  'TPU v6 lite': _V6E,
  'TPU v6e': _V6E,
  'TPU7x': _7X,
}


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
  chip = CHIPS.get(device_kind)
  return chip and flops / (seconds * devices * chip.device_peak)
