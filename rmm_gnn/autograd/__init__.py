"""Operators with their own backward; one file each."""
