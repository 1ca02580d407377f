"""Runs of training: queued, started as processes of their own, watched, stopped, resumed."""
