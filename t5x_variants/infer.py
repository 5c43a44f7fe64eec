r"""Generates or scores text with a trained model.

  python -m t5x_variants.infer \
    --gin_file=gin/models/tiny.gin --gin_file=gin/variants/swiglu.gin \
    --gin_file=gin/runs/infer.gin --gin.CHECKPOINT_PATH="'runs/swiglu'" \
    --gin.INFER_INPUTS="'questions.txt'" --gin.INFER_OUTPUT="'answers.jsonl'"

Without INFER_INPUTS it asks at the terminal.
"""

import gin

from t5x_variants.cli import gin_utils

gin_utils.define_flags()


def main() -> None:
  """Reads the gin files and answers, or with --dry_run prints them."""
  from t5x_variants import logs
  from t5x_variants.inference import inference

  logs.quiet()
  if infer := gin_utils.started(inference.infer):
    infer(settings=gin.config_str())


if __name__ == '__main__':
  gin_utils.run(main)
