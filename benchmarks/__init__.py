"""Side-by-side programs: ours against what a user would pick instead."""
