"""Trains the backbone and its draft head, or the beam-search baseline."""
