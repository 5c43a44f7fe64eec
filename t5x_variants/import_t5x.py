r"""Imports the weights of a t5x checkpoint.

  python -m t5x_variants.import_t5x \
    --gin_file=gin/models/t5_1_1_small.gin --gin_file=gin/variants/geglu.gin \
    --checkpoint=gs://BUCKET/t5_1_1_small/checkpoint_1000000 \
    --output=imported/t5_1_1_small

The model and variant files say what must be in it; a tensor that is missing,
extra or of another shape is named, and nothing is written. t5x itself is not
needed. What is written holds the weights, which must fit into memory, and no
optimizer state: a new run starts from it by --gin.INITIAL_CHECKPOINT_PATH,
and export_hf takes it as --run.

Public checkpoints lie below gs://t5-data/pretrained_models/t5x.
"""

from t5x_variants.cli import gin_utils, importing

gin_utils.define_flags()
importing.define_flags('checkpoint_STEP of t5x, in a local folder or on gs://')


def main() -> None:
  """Reads the gin files and the checkpoint, compares, then writes."""
  from t5x_variants import logs
  from t5x_variants.weights import t5x

  logs.quiet()
  importing.run(lambda path, config, names: t5x.open_checkpoint(path))


if __name__ == '__main__':
  gin_utils.run(main)
