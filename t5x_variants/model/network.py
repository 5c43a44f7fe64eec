"""T5 1.1 (Raffel et al. 2019, 1910.10683) with a choice of feed-forward block.

An encoder reads `[batch, length]` token ids (0 is padding), a decoder predicts
the targets from them and from the targets shifted by one; both are stacks of
pre-norm residual layers. Signatures, parameter names, parameter shapes and
logical axes are those of t5x's T5 example, so that its launcher, its
checkpoints and its partitioning rules fit.

`T5Config.scan_layers` runs a stack as one scanned layer, whose parameters and
cache have a leading `layers` axis; `stack_layers` and `unstack_layers`
translate parameters between the two forms.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_variants import errors
from t5x_variants.model import attention, layers, mlp, stacks


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes and choices of a model; t5x's names where t5x has one.

  Attributes:
    vocab_size: rows of the token table.
    dtype: what the matmuls compute in, a dtype or its name; parameters,
      norms' statistics and output logits are float32 always.
    emb_dim: width of the residual stream.
    num_heads: attention heads of each layer.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: width of a head.
    mlp_dim: real width of the feed-forward block (see `mlp.width`).
    dropout_rate: of every dropout.
    logits_via_embedding: whether the token table is the output matrix too.
    float32_attention_logits: whether attention logits and their softmax are
      float32 whatever `dtype` is.
    feed_forward: the choice of feed-forward block.
    scan_layers: whether a stack is one scanned layer: compiles faster.
    remat_policy: what the backward pass computes again: 'none' of it, all
      but the matmuls ('minimal'), or every layer ('full').
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  feed_forward: mlp.FeedForwardConfig = dataclasses.field(
    default_factory=mlp.FeedForwardConfig
  )
  scan_layers: bool = False
  remat_policy: str = 'none'

  def __post_init__(self):
    try:
      dtype = jnp.dtype(self.dtype)
      allowed = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
      allowed = False
    if not allowed:
      raise errors.UserError(
        f'T5Config has dtype={self.dtype!r}, which is no floating point type: '
        "use 'float32' or 'bfloat16'."
      )
    object.__setattr__(self, 'dtype', dtype)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and (not isinstance(value, int) or value < 1):
        raise errors.UserError(
          f'T5Config has {field.name}={value!r}: give a whole number from 1.'
        )
    if self.remat_policy not in stacks.REMAT_POLICIES:
      raise errors.UserError(
        f'T5Config has remat_policy={self.remat_policy!r}: use one of '
        f'{sorted(stacks.REMAT_POLICIES)}.'
      )
    if not 0 <= self.dropout_rate < 1:
      raise errors.UserError(
        f'T5Config has dropout_rate={self.dropout_rate!r}: give a number from '
        '0 to less than 1.'
      )


class Transformer(nn.Module):
  """The encoder-decoder."""

  config: T5Config

  @property
  def scan_layers(self) -> bool:
    """Tells t5x's beam search on which axis of the cache the batch is."""
    return self.config.scan_layers

  def setup(self):
    """Declares the parts."""
    cfg = self.config
    self.token_embedder = layers.Embed(
      cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype
    )
    self.encoder = stacks.Encoder(cfg)
    self.decoder = stacks.Decoder(cfg)

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'B K'],
    decoder_input_tokens: Int[Array, 'B L'],
    decoder_target_tokens: Int[Array, 'B L'],
    encoder_segment_ids: Int[Array, 'B K'] | None = None,
    decoder_segment_ids: Int[Array, 'B L'] | None = None,
    encoder_positions: Int[Array, 'B K'] | None = None,
    decoder_positions: Int[Array, 'B L'] | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
  ) -> Float[Array, 'B L V']:
    """Logits of the targets, each from the targets before it.

    Args:
      encoder_input_tokens: the inputs; 0 is padding.
      decoder_input_tokens: the targets shifted right by one, restarting with
        0 at each packed example.
      decoder_target_tokens: the targets, here only to tell padding.
      encoder_segment_ids: which packed example an input belongs to.
      decoder_segment_ids: the same of the targets.
      encoder_positions: not used: T5 knows distances only.
      decoder_positions: not used.
      enable_dropout: whether dropout is on; needs the rng 'dropout'.
      decode: sets up the cache for decoding up to the targets' length.

    Returns:
      float32 logits.
    """
    del encoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout,
      decode,
    )

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'B K'],
    encoder_segment_ids: Int[Array, 'B K'] | None = None,
    enable_dropout: bool = True,
  ) -> Float[Array, 'B K D']:
    """Encodes the inputs; the arguments are those of `__call__`."""
    real = encoder_input_tokens > 0
    mask = attention.attention_mask(real, real, jnp.logical_and)
    if encoder_segment_ids is not None:
      mask &= attention.attention_mask(
        encoder_segment_ids, encoder_segment_ids, jnp.equal
      )
    embedded = self.token_embedder(encoder_input_tokens)
    return self.encoder(embedded, mask, not enable_dropout)

  def decode(
    self,
    encoded: Float[Array, 'B K D'],
    encoder_input_tokens: Int[Array, 'B K'],
    decoder_input_tokens: Int[Array, 'B L'],
    decoder_target_tokens: Int[Array, 'B L'],
    encoder_segment_ids: Int[Array, 'B K'] | None = None,
    decoder_segment_ids: Int[Array, 'B L'] | None = None,
    decoder_positions: Int[Array, 'B L'] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'B L V']:
    """Logits of the targets from encoded inputs.

    The arguments are those of `__call__`. With `decode` and a cache that
    exists, the tokens are one position, and `max_decode_length` is the length
    that the cache was made for; needs `mutable=['cache']`.
    """
    del decoder_positions
    mask, cross_mask = _decoder_masks(
      encoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decode,
    )
    y = self.decoder(
      self.token_embedder(decoder_input_tokens),
      encoded,
      mask,
      cross_mask,
      not enable_dropout,
      decode,
      max_decode_length,
    )
    return (
      self.token_embedder.attend(y) if self.config.logits_via_embedding else y
    )


def _decoder_masks(inputs, targets, input_ids, target_ids, decode):
  """What the decoder may see of the targets and of the inputs."""
  if (input_ids is None) != (target_ids is None):
    raise errors.UserError(
      'Segment ids were given for one of encoder and decoder: packed batches '
      'need both encoder_segment_ids and decoder_segment_ids.'
    )
  if decode:
    if input_ids is not None:
      raise errors.UserError(
        'Segment ids were given with decode=True: packed examples cannot be '
        'decoded; pass one example a row, without segment ids.'
      )
    # A target that is yet to come looks like padding.
    targets = jnp.ones_like(targets)
  real = targets > 0
  cross_mask = attention.attention_mask(real, inputs > 0, jnp.logical_and)
  if decode:
    return None, cross_mask
  order = jnp.arange(targets.shape[1])[None]
  mask = attention.attention_mask(order, order, jnp.greater_equal)
  mask &= attention.attention_mask(real, real, jnp.logical_and)
  if target_ids is not None:
    mask &= attention.attention_mask(target_ids, target_ids, jnp.equal)
    cross_mask &= attention.attention_mask(target_ids, input_ids, jnp.equal)
  return mask, cross_mask


def stack_layers(params: dict) -> dict:
  """Parameters of an unrolled model as those of the scanned one."""
  stacked = dict(params)
  for stack in ('encoder', 'decoder'):
    tree = dict(params[stack])
    count = sum(name.startswith('layers_') for name in tree)
    each = [tree.pop(f'layers_{index}') for index in range(count)]
    tree['layers'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    stacked[stack] = tree
  return stacked


def unstack_layers(params: dict) -> dict:
  """Parameters of a scanned model as those of the unrolled one."""
  unstacked = dict(params)
  for stack in ('encoder', 'decoder'):
    tree = dict(params[stack])
    scanned = tree.pop('layers')
    for index in range(len(jax.tree.leaves(scanned)[0])):
      tree[f'layers_{index}'] = jax.tree.map(lambda x, i=index: x[i], scanned)
    unstacked[stack] = tree
  return unstacked
