"""How fast: load tests, benchmarks against beam search, and what an answer's time goes to."""
