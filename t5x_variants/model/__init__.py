"""T5: attention, feed-forward blocks, encoder, decoder, and decoding."""
