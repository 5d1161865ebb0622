"""Whether servers last: hours of mixed load, with faults."""
