"""Callbacks: result writers, weight averaging, run bookkeeping."""
