"""Turn a bag into answers that need no labels: groups of like tiles, and what is unlike ordinary tissue."""

from slideway.heads.groups import group_tiles
from slideway.heads.novelty import Reference, find_novelty, find_reference, load_reference, score_novelty

__all__ = ["Reference", "find_novelty", "find_reference", "group_tiles", "load_reference", "score_novelty"]
