"""What a model costs: where its memory goes."""

from rmm_gnn.diagnostics.memory import memory_report
from rmm_gnn.diagnostics.report import MemoryReport, SavedEntry

__all__ = ["MemoryReport", "SavedEntry", "memory_report"]
