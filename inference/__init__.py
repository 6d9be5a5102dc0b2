"""A trained recommender at work: model folders, recommendations, results per user."""
