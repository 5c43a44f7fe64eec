"""T5 with a choice of feed-forward block: gated, rational or polynomial."""

__version__ = '0.1.0'
