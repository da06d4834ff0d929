"""The grid over DVC: what is done, what would run, and cells side by side."""
