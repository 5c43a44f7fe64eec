"""What all rooms of `data` stand on: TensorFlow, positions, checked JSON."""
