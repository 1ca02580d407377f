"""What a run keeps, so that it can be continued: its folder, its checkpoints, its record."""
