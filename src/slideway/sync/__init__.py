"""Carry bundles, pixels and messages between node and cloud over a line that may be slow, lossy or gone."""
