"""Documents: where text comes from, and its vocabularies."""
