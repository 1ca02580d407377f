"""The pages, each built into a part of the app."""
