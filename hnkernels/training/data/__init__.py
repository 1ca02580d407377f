"""Training data: folders, tables, captions and pictures, read and encoded."""
