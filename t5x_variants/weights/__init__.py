"""Weights from elsewhere and for elsewhere.

`t5x` reads checkpoints of google-research/t5x, `hugging_face` reads and
describes folders of transformers, `saved` reads and writes our own; `fit`
compares what was found with what a model has. The entry points are
`import_t5x`, `import_hf` and `export_hf`, and the trainer's
INITIAL_CHECKPOINT_PATH.
"""
