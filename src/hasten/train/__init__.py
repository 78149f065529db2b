"""Fitting to one model: drafters to what it says, four-bit weights to what they are given."""
