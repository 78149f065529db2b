"""Hasten: exactly the text the model would have given, several times sooner."""

__version__ = "0.1.0"
