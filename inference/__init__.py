"""A trained recommender at work: model folders and recommendations."""
