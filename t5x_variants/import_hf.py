r"""Imports the weights of a Hugging Face T5.

  python -m t5x_variants.import_hf \
    --gin_file=gin/models/t5_1_1_base.gin --gin_file=gin/variants/geglu.gin \
    --checkpoint=/models/t5-v1_1-base --output=imported/t5_1_1_base

Reads config.json and the weights beside it (safetensors, in one file or in
several; pytorch_model.bin where torch is installed) of a local folder: T5,
T5 1.1, Flan-T5, ByT5, and what export_hf wrote. The model and variant files
say what must be in it; what differs is named, and nothing is written. A new
run starts from the output by --gin.INITIAL_CHECKPOINT_PATH.
"""

from t5x_variants.cli import gin_utils, importing

gin_utils.define_flags()
importing.define_flags('A folder with config.json and weights')


def main() -> None:
  """Reads the gin files and the folder, compares, then writes."""
  from t5x_variants import logs
  from t5x_variants.weights import hugging_face

  logs.quiet()
  importing.run(hugging_face.open_folder)


if __name__ == '__main__':
  gin_utils.run(main)
