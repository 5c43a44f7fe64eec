"""Sweeps of runs, and what runs reached: tables and pictures."""
