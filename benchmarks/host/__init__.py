"""What a call costs the host: Python and dispatch, on a pretended device whose launches return at once."""
