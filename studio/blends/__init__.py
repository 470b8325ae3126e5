"""Blends: several adapters made into one, tried, and kept in the library."""
