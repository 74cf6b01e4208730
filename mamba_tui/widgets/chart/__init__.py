"""The line chart: numbers to braille, axes, and the widget."""
