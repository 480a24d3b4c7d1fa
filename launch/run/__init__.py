"""One training run: its experiment, its program, its data, the loop, and what it writes."""
