"""Generating text with checkpoints: the generator process, the decoder, and sampling."""
