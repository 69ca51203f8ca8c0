"""`brain serve --workers N`: a supervisor, and the workers that share its port."""
