"""GLUE, SuperGLUE and SQuAD as tasks, from TFDS or their own files."""
