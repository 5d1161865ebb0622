"""The live catalogue: a Delta Lake table of changes with a compacted base, apart from the bundle.

`changes` needs only numpy. The other modules need deltalake and pyarrow (the extra `catalog`); only the follower and
the commands import them.
"""
