"""From the rows of ``benchmarks/results/`` to tables, pictures and docs/: nothing is run here, only shown.

``times.py`` finds a figure among the rows, ``claims.py`` holds targets against them, ``measured.py`` and ``counted.py``
make tables, their ``_plots.py`` and ``plots.py`` pictures, ``documents.py`` puts both where they are read and says
whether they are stale.
"""
