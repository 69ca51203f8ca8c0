"""The command line: `commands` declares it, the other modules do the work."""
