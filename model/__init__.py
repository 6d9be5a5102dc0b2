"""The generative recommender and its beam search. Knows nothing of datasets."""
