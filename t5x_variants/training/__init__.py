"""A training run: state, step, loop, optimizer, checkpoints, selection."""
