"""Runnable examples; they import the public names of hfcompress only."""
