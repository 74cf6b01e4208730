"""The terminal: command line and Textual console. Never imports torch."""
