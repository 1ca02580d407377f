"""Hypernetworks and models made into others: merging, mixing, LoRA export, model files."""
