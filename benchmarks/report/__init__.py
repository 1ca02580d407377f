"""From the rows of ``benchmarks/results/`` to tables, pictures and docs/: nothing is run here, only shown.

``claims.py`` holds targets against what was measured, ``tables.py`` and ``plots.py`` make tables and pictures of the
rows, ``documents.py`` puts both where they are read. ``check.py`` says which committed figures are stale.
"""
