"""What of a slide is worth reading: tissue mask, tile grid, coarse looks, focus, quality grade, resolution, stain."""

from slideway.tissue.absorbance import measure_absorbance
from slideway.tissue.coarse import CELLULARITY, LOOKS, describe_parts
from slideway.tissue.focus import BLURRED_BELOW, is_blurred, measure_focus
from slideway.tissue.grade import grade_quality
from slideway.tissue.grid import lay_grid
from slideway.tissue.mask import find_tissue
from slideway.tissue.resolution import MppEstimate, estimate_mpp
from slideway.tissue.stain import StainLook, judge_stain

__all__ = [
    "BLURRED_BELOW",
    "CELLULARITY",
    "LOOKS",
    "MppEstimate",
    "StainLook",
    "describe_parts",
    "estimate_mpp",
    "find_tissue",
    "grade_quality",
    "is_blurred",
    "judge_stain",
    "lay_grid",
    "measure_absorbance",
    "measure_focus",
]
