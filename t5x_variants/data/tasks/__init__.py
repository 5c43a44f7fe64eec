"""What a model is asked for: tasks, their examples and their metrics."""
