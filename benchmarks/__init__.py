"""Benchmarks: what the library costs and gains, measured, counted, compiled and modelled, each told as what it is.

``shapes.py`` has the networks, layers, prompts and UNets of all of them, ``rows.py`` the one schema of their figures.

- Measured: ``suites/`` are the benchmarks, ``cases.py`` says what one is and what makes its results right,
  ``measuring.py`` runs it: build, check, time in turn, in an ``environment.py``. ``baselines.py`` is what
  hnkernels is compared with.
- Counted: ``counting.py`` says what every provider launches, computes, moves and keeps; ``accounting.py`` is the
  command, and has the least that it could be.
- Compiled: ``forms.py`` are the kernels in all their forms, ``compilation.py`` makes machine code of them, which
  ``machine_code.py`` reads; ``compiled.py`` is the command.
- Modelled: ``roofline.py`` turns counts into the time that a GPU would take at best; ``limits.py`` is the command,
  and says what the compiled code adds to that.

``report/`` makes pages, pictures and the tables of docs/ of the rows in ``results/``, and says which are stale.
``gpu_check/`` finds out whether all is right on a GPU, ``compare.py`` holds one version against another, ``host/``
measures what calls cost the host, ``loop.py`` the trainer's loop. ``activation_fits.py`` makes the polynomials of the
kernels' activations.

``python -m benchmarks`` runs everything on this machine, ``pytest benchmarks`` the same for pytest-benchmark.
"""
