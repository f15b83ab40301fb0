"""Small timings of one operation beside its peers."""
