"""Following the table."""
