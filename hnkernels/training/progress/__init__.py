"""What a run shows of how far it has come."""
