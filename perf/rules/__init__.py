"""What rules of a shop cost, and what they do to the answers."""
