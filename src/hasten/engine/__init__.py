"""Who runs, one step, and the library's front door."""
