"""What of a slide is worth reading: tissue mask, tile grid, focus, quality grade, estimated resolution."""

from slideway.tissue.focus import BLURRED_BELOW, is_blurred, measure_focus
from slideway.tissue.grade import grade_quality
from slideway.tissue.grid import lay_grid
from slideway.tissue.mask import find_tissue
from slideway.tissue.resolution import MppEstimate, estimate_mpp

__all__ = [
    "BLURRED_BELOW",
    "MppEstimate",
    "estimate_mpp",
    "find_tissue",
    "grade_quality",
    "is_blurred",
    "lay_grid",
    "measure_focus",
]
