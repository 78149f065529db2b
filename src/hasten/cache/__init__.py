"""Who owns which block of the key-value pool, and the tensors behind it."""
