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

The coefficients are float32 and so is the computation, whatever the model's
dtype. t5x_variants (Apache-2.0) wrote this file beside the weights; it needs
nothing but torch and transformers.
"""

import math

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, initialization


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


class Activation(nn.LayerNorm):
  """One block's activation with its coefficients, float32 vectors.

  It normalises nothing. It is a LayerNorm because Trainer leaves the
  parameters of that class out of weight decay, and decides by nothing else
  that an activation could have.

  The coefficients are registered in alphabetical order: an optimizer's state
  goes by order alone, and transformers sorts config.json when it saves.
  """

  def __init__(self, name, version, coefficients):
    nn.Module.__init__(self)
    self.formula, self.version = FORMULAS[name], version
    # Folders written before the initial values were in config.json have the
    # number of coefficients there; NaN shows that none were loaded.
    self.initial = {
      key: [math.nan] * value if isinstance(value, int) else value
      for key, value in sorted(coefficients.items())
    }
    for key in self.initial:
      self.register_parameter(key, nn.Parameter(self._initial_value(key)))

  def _initial_value(self, key):
    # Not of torch's default dtype, which transformers sets to the model's.
    return torch.tensor(self.initial[key], dtype=torch.float32)

  def reset_parameters(self):
    """Gives every coefficient that was not loaded its initial values."""
    for key in self.initial:
      initialization.copy_(getattr(self, key), self._initial_value(key))

  def _apply(self, fn, recurse=True):
    """Moves the coefficients to another device, not to another dtype."""

    def moved(tensor):
      result = fn(tensor)
      if result.dtype == tensor.dtype:
        return result
      return tensor.to(result.device)

    return super()._apply(moved, recurse)

  def forward(self, z):
    """Applies the activation to [..., d_ff]."""
    coefficients = {key: getattr(self, key) for key in self.initial}
    return self.formula(z.float(), coefficients, self.version).to(z.dtype)

  def extra_repr(self):
    """The formula and the numbers of coefficients."""
    lengths = [f'{key}={len(values)}' for key, values in self.initial.items()]
    return ', '.join([self.formula.__name__.strip('_'), *lengths])


class T5VariantsConfig(T5Config):
  """T5's configuration, and `activation`: name, version, initial values."""

  model_type = 't5x_variants'
  activation: dict | None = None

  def __post_init__(self, **kwargs):
    """Lets T5 build its blocks with any activation, to be replaced."""
    super().__post_init__(**kwargs)
    self.dense_act_fn = 'linear'


class T5VariantsForConditionalGeneration(T5ForConditionalGeneration):
  """T5 with a language model's head and learned activations."""

  config_class = T5VariantsConfig
  _keep_in_fp32_modules_strict = ['DenseReluDense.act']

  def __init__(self, config):
    super().__init__(config)
    for stack in (self.encoder, self.decoder):
      for block in stack.block:
        block.layer[-1].DenseReluDense.act = Activation(**config.activation)

  @torch.no_grad()
  def initialize_weights(self):
    """Initialises what was not loaded."""
    # Not by _init_weights: a stack's modules are given to the stack's own.
    super().initialize_weights()
    for module in self.modules():
      if isinstance(module, Activation):
        module.reset_parameters()
