"""From a change to every client."""
