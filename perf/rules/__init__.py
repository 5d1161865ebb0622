"""Benchmarks of rules."""
