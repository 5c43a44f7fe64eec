"""The encoder and the decoder: stacks of pre-norm residual layers.

Their configuration is a `network.T5Config`. A stack is run layer by layer, or
as one scanned layer whose parameters and cache have a leading `layers` axis.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float

from t5x_variants import kernels
from t5x_variants.model import attention, layers, mlp

REMAT_POLICIES = {
  'none': None,
  # The outputs of the matmuls with parameters; attention is computed again.
  # Of the feed-forward block, what `FeedForwardConfig.save` says, if anything.
  'minimal': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(kernels.PREACTIVATIONS),
  ),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class _Layer(nn.Module):
  """What encoder and decoder layers share: pre-norm residual blocks."""

  config: Any
  deterministic: bool

  def _norm(self, x, name):
    y = layers.LayerNorm(dtype=self.config.dtype, name=name)(x)
    return layers.constrain(y, 'batch', 'length', 'embed')

  def _attention(self, name):
    cfg = self.config
    return attention.MultiHeadDotProductAttention(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      float32_logits=cfg.float32_attention_logits,
      name=name,
    )

  def _mlp(self, x):
    cfg = self.config
    return mlp.MlpBlock(
      cfg.mlp_dim,
      cfg.feed_forward,
      dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      name='mlp',
    )(x, deterministic=self.deterministic)

  def _add(self, x, update):
    x = x + _dropout(self.config, update, self.deterministic)
    return layers.constrain(x, 'batch', 'length', 'embed')


class EncoderLayer(_Layer):
  """Self-attention, then the feed-forward block."""

  @nn.compact
  def __call__(self, x, mask, bias):
    """Maps [batch, length, emb_dim] to the same; None for a scan's output."""
    y = self._norm(x, 'pre_attention_layer_norm')
    y = self._attention('attention')(
      y, y, mask, bias, deterministic=self.deterministic
    )
    x = self._add(x, y)
    y = self._mlp(self._norm(x, 'pre_mlp_layer_norm'))
    return self._add(x, y), None


class DecoderLayer(_Layer):
  """Self-attention, attention to the encoder, the feed-forward block."""

  decode: bool = False

  @nn.compact
  def __call__(self, x, encoded, mask, cross_mask, bias, by_distance):
    """Maps [batch, length, emb_dim] to the same; None for a scan's output."""
    y = self._norm(x, 'pre_self_attention_layer_norm')
    y = self._attention('self_attention')(
      y,
      y,
      mask,
      bias,
      by_distance=by_distance,
      decode=self.decode,
      deterministic=self.deterministic,
    )
    x = self._add(x, y)
    y = self._norm(x, 'pre_cross_attention_layer_norm')
    y = self._attention('encoder_decoder_attention')(
      y, encoded, cross_mask, deterministic=self.deterministic
    )
    x = self._add(x, y)
    y = self._mlp(self._norm(x, 'pre_mlp_layer_norm'))
    return self._add(x, y), None


def _dropout(config, x, deterministic):
  """One mask per example for all its positions."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(
    x, deterministic=deterministic
  )


def _run_layers(layer, config, count, attributes, x, *context):
  """Runs a stack: x through `count` layers that all see `context`."""
  if config.remat_policy != 'none':
    layer = nn.remat(
      layer,
      policy=REMAT_POLICIES[config.remat_policy],
      prevent_cse=not config.scan_layers,
    )
  if config.scan_layers:
    scanned = partitioning.scan_with_axes(
      layer,
      variable_axes={'params': 0, 'cache': 0, 'intermediates': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=count,
      axis_name='layers',
    )
    return scanned(config, name='layers', **attributes)(x, *context)[0]
  for index in range(count):
    x, _ = layer(config, name=f'layers_{index}', **attributes)(x, *context)
  return x


class _Stack(nn.Module):
  """What encoder and decoder share: the configuration and the biases."""

  config: Any

  def _biases(self, distance, bidirectional):
    return attention.RelativePositionBiases(
      num_heads=self.config.num_heads,
      bidirectional=bidirectional,
      dtype=self.config.dtype,
      name='relpos_bias',
    )(distance)

  def _start(self, x, deterministic):
    x = _dropout(self.config, x, deterministic).astype(self.config.dtype)
    return layers.constrain(x, 'batch', 'length', 'embed')


class Encoder(_Stack):
  """The encoder's layers, from embedded tokens to their encoding."""

  @nn.compact
  def __call__(
    self,
    embedded: Float[Array, 'B L D'],
    mask: Bool[Array, 'B 1 L L'],
    deterministic: bool,
  ) -> Float[Array, 'B L D']:
    """Encodes."""
    cfg = self.config
    bias = self._biases(attention.distances(embedded.shape[1]), True)[None]
    x = _run_layers(
      EncoderLayer,
      cfg,
      cfg.num_encoder_layers,
      {'deterministic': deterministic},
      self._start(embedded, deterministic),
      mask,
      bias,
    )
    x = layers.LayerNorm(dtype=cfg.dtype, name='encoder_norm')(x)
    return nn.Dropout(cfg.dropout_rate)(x, deterministic=deterministic)


class Decoder(_Stack):
  """The decoder's layers, from embedded tokens to logits."""

  @nn.compact
  def __call__(
    self,
    embedded: Float[Array, 'B L D'],
    encoded: Float[Array, 'B K D'],
    mask: Bool[Array, 'B 1 L L'] | None,
    cross_mask: Bool[Array, 'B 1 L K'],
    deterministic: bool,
    decode: bool,
    max_decode_length: int | None,
  ) -> Float[Array, 'B L _']:
    """Returns logits; with tied ones, what the token table makes them of."""
    cfg = self.config
    length = (decode and max_decode_length) or embedded.shape[1]
    bias = by_distance = None
    if decode:
      by_distance = self._biases(np.arange(-(length - 1), length), False)
    else:
      bias = self._biases(attention.distances(length), False)[None]
    y = _run_layers(
      DecoderLayer,
      cfg,
      cfg.num_decoder_layers,
      {'deterministic': deterministic, 'decode': decode},
      self._start(embedded, deterministic),
      encoded,
      mask,
      cross_mask,
      bias,
      by_distance,
    )
    y = layers.LayerNorm(dtype=cfg.dtype, name='decoder_norm')(y)
    y = _dropout(cfg, y, deterministic)
    if cfg.logits_via_embedding:
      return y
    return layers.DenseGeneral(
      (cfg.vocab_size,), ('embed', 'vocab'), name='logits_dense'
    )(y)
