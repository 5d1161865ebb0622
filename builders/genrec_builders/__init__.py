"""Makes bundles: data, semantic IDs, training, export, evaluation."""
