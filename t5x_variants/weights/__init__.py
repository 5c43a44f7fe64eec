"""Weights from elsewhere and for elsewhere.

`t5x` reads checkpoints of google-research/t5x, `hugging_face` reads and
writes folders of transformers, `foreign` finds out which of them a folder is,
and `saved` reads and writes our own. `matching` compares a checkpoint with a
model. The entry points are `import_weights`, `export_hf` and `export_t5x`, and
the trainer's INITIAL_CHECKPOINT_PATH.
"""
