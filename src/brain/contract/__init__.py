"""What is on the wire, and what a source of changes says. Pure."""
