r"""Evaluates a checkpoint, or predictions in a file.

  python -m t5x_variants.evaluate \
    --gin_file=gin/models/tiny.gin --gin_file=gin/variants/swiglu.gin \
    --gin_file=gin/data/embedded.gin --gin_file=gin/runs/eval.gin \
    --gin.CHECKPOINT_PATH="'runs/swiglu'"

Prints one JSON object: the loss over the whole held-out split, in nats per
target token, the share of tokens predicted, and the metrics that the tasks
have. With gin/runs/score.gin instead: the metrics of predictions in a file.
"""

from t5x_variants.cli import gin_utils

gin_utils.define_flags()


def main() -> None:
  """Reads the gin files and evaluates, or with --dry_run prints them."""
  from t5x_variants import logs
  from t5x_variants.inference import evaluation

  logs.quiet()
  if evaluate := gin_utils.started(evaluation.evaluate, evaluation.score):
    evaluate()


if __name__ == '__main__':
  gin_utils.run(main)
