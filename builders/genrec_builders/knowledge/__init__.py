"""Texts, a language model and checks for recommendation knowledge (DARE, arXiv 2408.05676)."""
