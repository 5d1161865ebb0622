"""genrec: the domain library of a serving stack for generative recommendation."""
