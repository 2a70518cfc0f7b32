"""Draft and render what a person reads: the overlay picture and the report page."""

from slideway.reports.content import EncoderSummary, FocusSummary, ReportContent, ShownTile, SlideMaps
from slideway.reports.overlay import draw_overlay
from slideway.reports.page import render_report

__all__ = [
    "EncoderSummary",
    "FocusSummary",
    "ReportContent",
    "ShownTile",
    "SlideMaps",
    "draw_overlay",
    "render_report",
]
