"""Benchmarks: what the library costs and gains, measured, counted, compiled and modelled, each told as what it is.

``shapes.py`` has the networks, layers, prompts and UNets of all of them; ``rows.py`` the one schema of their figures,
and the environment that they are found in.

- Measured: ``layers.py`` and ``unets.py`` are the benchmarks, ``cases.py`` says what one is and what makes its results
  right, ``measuring.py`` builds, checks and times it in turn with what hnkernels is compared with, such as
  ``baselines.py``. ``compare.py`` holds one version of the library against another. ``host.py`` measures what the
  library costs the host, and ``host_calls.py`` has the calls for it.
- Counted: ``counting.py`` says what every provider launches, computes, moves and keeps; ``accounting.py`` is the
  command, and has the least that it could be.
- Compiled: ``forms.py`` are the kernels in all their forms, ``machine_code.py`` compiles them for any target and reads
  what came out; ``compiled.py`` is the command, and judges it. ``activation_fits.py`` makes the polynomials of the
  kernels' activations.
- Modelled: ``roofline.py`` turns counts into the time that a GPU would take at best; ``limits.py`` is the command,
  and says what the compiled code adds to that.

``report.py`` makes pages, pictures (``plots.py``) and the tables of docs/ of the rows in ``results/``, and says which
are stale; ``tables.py`` shows what was measured, and holds it against what is promised. ``gpu_check/`` finds out
whether all is right on a GPU.

``python -m benchmarks`` runs everything on this machine, ``pytest benchmarks`` the same for pytest-benchmark.
"""
