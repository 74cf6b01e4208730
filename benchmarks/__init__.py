"""Measurements of speed and exactness; README.md says what each one is for, RESULTS.md what came out."""
