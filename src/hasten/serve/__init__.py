"""The HTTP server: worker threads that own engines, wire types, routes, and the page."""
