"""The command line: verbs; each imports what it needs when chosen."""
