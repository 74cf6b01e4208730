"""A layer's features of texts, as rows of numbers."""
