"""Instruments: proofs on the user's own models, timed comparisons, the roofline, quality. An edge: nothing of Hasten imports it but ``cli``."""
