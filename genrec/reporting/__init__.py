"""What every measurement and every long command shares: machine, timing, tables, progress."""
