"""Reproductions of the paper's tables and figures; each script runs as ``python benchmarks/<name>.py``."""
