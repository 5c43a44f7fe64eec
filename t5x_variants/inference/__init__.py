"""After training: weights that are loaded, evaluated and decoded with."""
