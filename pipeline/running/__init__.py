"""One stage at work: its result, its files, its lock."""
