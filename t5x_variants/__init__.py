"""T5 with a choice of feed-forward block: gated, rational or polynomial."""
