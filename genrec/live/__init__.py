"""A live catalogue: its store, and the follower that turns it into files for the steps of a server."""
