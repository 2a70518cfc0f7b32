"""Serve many nodes: take their bundles in, diagnose, ask people, and say how the fleet is."""
