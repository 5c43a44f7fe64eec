"""Command lines: flags, gin files, and sentences for mistakes in them."""
