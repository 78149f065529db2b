"""Words shared by every room: types, configuration, errors, registry. Importing this room never imports torch."""
