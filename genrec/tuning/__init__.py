"""Which deployment serves a bundle best on a machine: the likely ones are served and asked; what is found is kept."""
