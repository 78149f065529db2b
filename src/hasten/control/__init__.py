"""How much to draft: measured cost against live acceptance."""
