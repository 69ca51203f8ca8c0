"""Checks of the database that Brain is to follow."""
