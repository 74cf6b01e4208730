"""Text to token ids and back, and where vocabularies come from."""
