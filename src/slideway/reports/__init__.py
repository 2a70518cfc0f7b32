"""Draft and render what a person reads: the overlay picture, the report page, similar tissue."""

from slideway.reports.content import EncoderSummary, FocusSummary, ReportContent, ShownTile, SlideMaps
from slideway.reports.overlay import draw_overlay
from slideway.reports.page import render_report
from slideway.reports.sheet import ContactSheet, SheetRow, SheetTile, draw_contact_sheet
from slideway.reports.similar_page import render_similar_page

__all__ = [
    "ContactSheet",
    "EncoderSummary",
    "FocusSummary",
    "ReportContent",
    "SheetRow",
    "SheetTile",
    "ShownTile",
    "SlideMaps",
    "draw_contact_sheet",
    "draw_overlay",
    "render_report",
    "render_similar_page",
]
