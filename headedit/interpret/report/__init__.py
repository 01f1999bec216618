"""A run as one HTML file: its settings and measurements, its pictures, and every head in a map and a table."""

from headedit.interpret.report.folder import Table
from headedit.interpret.report.page import report

__all__ = ["Table", "report"]
