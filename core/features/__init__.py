"""What a layer of a model makes of texts, as rows of numbers."""
