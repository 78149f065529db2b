"""Fitting drafters to a target model."""
