"""Recommendation knowledge, written fast: texts of similar entities draft new ones (DARE, arXiv 2408.05676)."""
