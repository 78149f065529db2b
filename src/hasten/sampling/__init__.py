"""Choosing and verifying: pure functions on logits. All exactness rests here."""
