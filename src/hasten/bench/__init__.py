"""Instruments: proofs on the user's own models, timed comparisons, the roofline, quality. Only ``cli`` imports it."""
