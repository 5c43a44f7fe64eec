"""A model's configuration from one flat set of choices."""

from t5x_variants.model import mlp, network


def t5_config(
  activation='gelu', gated=True, implementation=None, save=None, **sizes
):
  block = mlp.FeedForwardConfig(activation, gated, implementation, save)
  return network.T5Config(**sizes, feed_forward=block)


def mlp_block(
  mlp_dim,
  activation='gelu',
  gated=False,
  implementation=None,
  save=None,
  **others,
):
  block = mlp.FeedForwardConfig(activation, gated, implementation, save)
  return mlp.MlpBlock(mlp_dim, block, **others)
