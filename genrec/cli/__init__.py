"""The `genrec` command: one file for each group of commands."""
