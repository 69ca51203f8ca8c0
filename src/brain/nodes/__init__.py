"""Several processes or machines, one database: a log between the source and the boards."""
