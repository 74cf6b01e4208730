"""What the layers of a model do with a text: figures and pictures, all exact."""
