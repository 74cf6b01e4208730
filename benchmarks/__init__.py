"""Measurements of speed and exactness; README.md describes each one, RESULTS.md has the results."""
