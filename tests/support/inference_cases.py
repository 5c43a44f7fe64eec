"""The model of the tests of inference."""

import functools

from configs import t5_config

from t5x_variants.model import network


@functools.cache
def model():
  config = t5_config(
    vocab_size=384,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
    activation='rational',
  )
  return network.Transformer(config)
