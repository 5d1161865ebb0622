"""genrec: the domain library and the runtime of a serving stack for generative recommendation."""

__version__ = "0.1.0"  # of every package and image of the project; k8s/chart/Chart.yaml repeats it, a test compares
