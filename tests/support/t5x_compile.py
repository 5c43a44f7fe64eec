"""Compiles t5x's training step for a TPU; test_t5x_runs starts it.

  python tests/support/t5x_compile.py v5e:2x4 2

Needs t5x on PYTHONPATH and libtpu, but no TPU. The step is t5x's own, through
its partitioner, over the mesh that it makes of our submesh; the blocks are
Pallas kernels, or an error. Prints the mesh, the number of kernels and the
bytes a device needs.
"""

import os

os.environ.update(
  JAX_PLATFORMS='cpu',
  TPU_SKIP_MDS_QUERY='1',
  TPU_WORKER_HOSTNAMES='localhost',
  TPU_ACCELERATOR_TYPE='v5litepod-4',
  ALLOW_MULTIPLE_LIBTPU_LOAD='1',
)

import functools
import sys

import jax
import jax.numpy as jnp
from configs import t5_config
from jax.experimental import topologies
from t5x import adafactor, models, partitioning, trainer, utils

from t5x_variants import for_t5x
from t5x_variants.data.text import vocabularies
from t5x_variants.model import network

INPUTS, TARGETS = (32, 256), (32, 64)
SHAPES = {
  'encoder_input_tokens': INPUTS,
  'decoder_input_tokens': TARGETS,
  'decoder_target_tokens': TARGETS,
  'decoder_loss_weights': TARGETS,
  'encoder_segment_ids': INPUTS,
  'decoder_segment_ids': TARGETS,
  'encoder_positions': INPUTS,
  'decoder_positions': TARGETS,
}


def partitioner_for(devices, model_axis_size):
  """t5x's partitioner, for devices that this machine does not have."""
  mesh = partitioning.get_mesh(
    for_t5x.submesh(model_axis_size, devices),
    devices,
    [device for device in devices if device.process_index == 0],
  )

  class Partitioner(partitioning.PjitPartitioner):
    """With a mesh that is given."""

  Partitioner.mesh = mesh
  return Partitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
  )


def model():
  """One layer each, gated and rational, with the kernels."""
  config = t5_config(
    vocab_size=384,
    dtype='bfloat16',
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=512,
    activation='rational',
    gated=True,
    dropout_rate=0.0,
    scan_layers=True,
    remat_policy='minimal',
    implementation='pallas',
  )
  return models.EncoderDecoderModel(
    module=network.Transformer(config),
    input_vocabulary=vocabularies.byte(),
    output_vocabulary=vocabularies.byte(),
    optimizer_def=for_t5x.optimizer(
      adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=for_t5x.factor_rules()
      ),
      for_t5x.coefficient_adafactor(lambda step: 5e-4),
    ),
    z_loss=1e-4,
  )


def main(topology, model_axis_size):
  """Compiles for one topology."""
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  partitioner, t5 = partitioner_for(devices, model_axis_size), model()
  initial = utils.TrainStateInitializer(
    optimizer_def=t5.optimizer_def,
    init_fn=t5.get_initial_variables,
    input_shapes=SHAPES,
    partitioner=partitioner,
  )
  axes = initial.train_state_axes
  step = partitioner.partition(
    functools.partial(
      trainer.train_with_lr,
      model=t5,
      learning_rate=0.01,
      dropout_rng=jax.random.PRNGKey(0),
      num_microbatches=2,
    ),
    in_axis_resources=(axes, partitioner.data_partition_spec),
    out_axis_resources=(axes, None),
    donate_argnums=(0,),
  )
  batch = {k: jax.ShapeDtypeStruct(v, jnp.int32) for k, v in SHAPES.items()}
  compiled = step.lower(initial.global_train_state_shape, batch).compile()
  print(
    dict(partitioner.mesh.shape),
    'kernels:',
    compiled.as_text().count('tpu_custom_call'),
    'bytes:',
    compiled.memory_analysis().peak_memory_in_bytes,
  )


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
