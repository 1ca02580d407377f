"""From the rows of ``benchmarks/results/`` to tables, pictures and docs/: nothing is run here, only shown.

``claims.py`` holds targets against what was measured, ``tables.py`` and ``plots.py`` make tables and pictures of the
rows; the command puts both where they are read, and says which committed figures are stale.
"""
