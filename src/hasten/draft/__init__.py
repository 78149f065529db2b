"""Drafters: whoever can guess the next tokens cheaply."""
