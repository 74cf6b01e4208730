"""Any file, compressed without loss by a model's probabilities."""
