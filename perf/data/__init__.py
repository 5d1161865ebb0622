"""What the size of a dataset costs a build before its first training step."""
