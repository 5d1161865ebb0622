"""What each part of the method is worth in Hit@K and NDCG@K, and what its rivals reach."""
