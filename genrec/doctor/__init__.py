"""What is wrong with a machine, a bundle, a server or a live catalogue, in words: `genrec doctor`.

Each module looks at one of them, with the checks that serving itself makes, and yields `Finding`s.
"""

from genrec.doctor.finding import Finding

__all__ = ["Finding"]
