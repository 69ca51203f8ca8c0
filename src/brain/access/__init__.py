"""Who may connect, and how much."""
