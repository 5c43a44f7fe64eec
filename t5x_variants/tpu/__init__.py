"""A run compiled for a TPU slice that is elsewhere: programs and memory."""
