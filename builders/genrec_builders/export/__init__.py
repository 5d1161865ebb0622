"""Exports a trained checkpoint for the engines that serve it."""
