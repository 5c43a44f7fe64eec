"""What a run directory holds, and who may write to it."""
