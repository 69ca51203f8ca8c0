"""Brain follows the PostgreSQL table `runs` and pushes every change of it to every WebSocket client."""

__version__ = "0.1.0"
