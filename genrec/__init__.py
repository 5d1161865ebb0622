"""genrec: the domain library and the runtime of a serving stack for generative recommendation."""

import os

__version__ = "0.1.0"  # of every package and image of the project; k8s/chart/Chart.yaml repeats it, a test compares

# PyTorch's threads wait for each other in a loop, in each operation, by default for some milliseconds. A thread that
# waits so for one whose processor a neighbour has is of no use, and takes the other processor from everybody. With
# some 50 us nothing is lost alone. Here, because it is read when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
