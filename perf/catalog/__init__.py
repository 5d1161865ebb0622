"""What a live catalogue costs: lookups, memory, and how soon a change shows."""
