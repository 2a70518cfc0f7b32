"""Turn a bag into answers that need no labels: groups, novelty, similar cases; and choose which tiles to read."""

from slideway.heads.groups import group_tiles
from slideway.heads.novelty import Reference, find_novelty, find_reference, load_reference, score_novelty
from slideway.heads.screen import Screening, Selection, select_tiles
from slideway.heads.similar import QueryRegion, SimilarCase, Similarity, SimilarRegion, find_similar

__all__ = [
    "QueryRegion",
    "Reference",
    "Screening",
    "Selection",
    "SimilarCase",
    "SimilarRegion",
    "Similarity",
    "find_novelty",
    "find_reference",
    "find_similar",
    "group_tiles",
    "load_reference",
    "score_novelty",
    "select_tiles",
]
