"""Frames, masks and videos on disk."""
