"""T5 with a learned activation, for transformers (trust_remote_code=True).

A T5 1.1 as transformers has it, but for the activation of its feed-forward
blocks, which has coefficients of its own in each block:

  rational   P(z) / Q(z), P(z) = sum_i a_i z^i, and Q of version
             A  1 + sum_k |b_k| |z|^k
             B  1 + |sum_k b_k z^k| from k = 1 (D is B once it is trained)
             C  0.1 + |sum_k b_k z^k| from k = 0
  polyrelu   bias + sum_k weight_k max(z, 0)^k
  polynorm   bias + sum_k weight_k z^k / sqrt(mean(z^2k) + 1e-6), the mean
             over the block's width
  xielu      a_p z^2 + z / 2 above 0, a_n (e^z - 1 - z) + z / 2 below, with
             a_p = softplus(alpha_p), a_n = 1/2 + softplus(alpha_n)

Computed in float32 whatever the model's dtype. This file stands on its own:
it was written beside the weights by t5x_variants (Apache-2.0).
"""

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration


def _power_sum(coefficients, z, first):
  """sum_k coefficients[k] z^(k + first)."""
  result = torch.zeros_like(z)
  for coefficient in reversed(coefficients.unbind()):
    result = result * z + coefficient
  return result * z**first if first else result


def _absolute(x):
  # Not abs, whose derivative at 0 is 0: a coefficient there must learn.
  return torch.where(x < 0, -x, x)


def _rational(z, c, version):
  numerator = _power_sum(c['numerator'], z, 0)
  b = c['denominator']
  if version == 'A':
    denominator = 1.0 + _power_sum(_absolute(b), _absolute(z), 1)
  elif version == 'C':
    denominator = 0.1 + _absolute(_power_sum(b, z, 0))
  else:
    denominator = 1.0 + _absolute(_power_sum(b, z, 1))
  return numerator / denominator


def _polyrelu(z, c, version):
  return _power_sum(c['weight'], z.clamp(min=0), 1) + c['bias']


def _polynorm(z, c, version):
  result, power = c['bias'] + torch.zeros_like(z), torch.ones_like(z)
  for weight in c['weight'].unbind():
    power = power * z
    mean_square = power.square().mean(-1, keepdim=True)
    result = result + weight * power * torch.rsqrt(mean_square + 1e-6)
  return result


def _xielu(z, c, version):
  a_p = nn.functional.softplus(c['alpha_p'])
  a_n = 0.5 + nn.functional.softplus(c['alpha_n'])
  below = z.clamp(max=0)
  return (
    torch.where(z > 0, a_p * z * z, a_n * (torch.expm1(below) - below))
    + 0.5 * z
  )


FORMULAS = {
  'rational': _rational,
  'polyrelu': _polyrelu,
  'polynorm': _polynorm,
  'xielu': _xielu,
}


class Activation(nn.Module):
  """One block's activation with its coefficients, float32 vectors."""

  def __init__(self, name, version, coefficients):
    super().__init__()
    self.formula, self.version = FORMULAS[name], version
    for key, length in coefficients.items():
      self.register_parameter(key, nn.Parameter(torch.zeros(length)))

  def forward(self, z):
    """Applies the activation to [..., d_ff]."""
    c = {key: value.float() for key, value in self.named_parameters()}
    return self.formula(z.float(), c, self.version).to(z.dtype)


class T5VariantsConfig(T5Config):
  """T5's configuration, and `activation`: its name, version and lengths."""

  model_type = 't5x_variants'
  activation: dict | None = None

  def __post_init__(self, **kwargs):
    """Lets T5 build its blocks with any activation, to be replaced."""
    super().__post_init__(**kwargs)
    self.dense_act_fn = 'linear'


class T5VariantsForConditionalGeneration(T5ForConditionalGeneration):
  """T5 with a language model's head and learned activations."""

  config_class = T5VariantsConfig

  def __init__(self, config):
    super().__init__(config)
    for stack in (self.encoder, self.decoder):
      for block in stack.block:
        block.layer[-1].DenseReluDense.act = Activation(**config.activation)
