"""The Configure tab."""
