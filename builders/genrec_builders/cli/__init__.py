"""The commands that `genrec-builders` adds to `genrec`."""
