"""The documentation: its blocks, its links, and what it takes from the code."""
