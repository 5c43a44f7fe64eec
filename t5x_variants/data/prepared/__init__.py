"""Tokens that were written once: their format, writer and reader."""
