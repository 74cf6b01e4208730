"""Checkpoints that write: the generator process, the decoder, and sampling."""
