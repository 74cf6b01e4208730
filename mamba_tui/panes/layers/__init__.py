"""Layers: what each layer of a checkpoint does with a text."""
