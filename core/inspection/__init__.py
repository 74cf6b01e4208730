"""What the layers of a model do with a text, in exact figures and pictures."""
