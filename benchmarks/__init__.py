"""Benchmarks: what the library costs and gains, measured, counted, compiled and modelled, each told as what it is.

``suites/`` are the benchmarks. ``registry.py`` says what one is, ``measuring.py`` runs it: build, check
(``checking.py``), time in turn (``timing.py``; ``graphs.py`` for CUDA graphs, ``resident.py`` for memory).
``accounting/`` counts what every provider launches, computes, moves and keeps, beside the least that it could;
``limits/`` turns that into the time that a GPU would take at best; ``compiled/`` reads the machine code. All of it
becomes ``rows.py``'s rows in ``results/``, and ``report/`` makes pages, pictures and the tables of docs/ of them.
``compare/`` holds one version against another, ``host/`` measures what calls cost the host.
``activation_fits.py`` makes the polynomials of the kernels' activations.

``python -m benchmarks`` runs everything on this machine, ``pytest benchmarks`` the same for pytest-benchmark.
"""
