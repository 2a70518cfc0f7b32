"""The node in the laboratory: watches folders, reads slides, sends what may leave, goes on without a line."""
