"""What a call costs the host: Python and dispatch, on a pretended device whose launches return at once.

``sides.py`` is what is timed and counted, and how; ``projections.py``, ``launches.py`` and ``unets.py`` build what is
compared; ``lines.py`` holds it to its targets and makes a table of that.
"""
