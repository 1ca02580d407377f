"""Limits: what the accounts and the compiled code say of GPUs that none of this has run on.

``gpus`` is the table of data sheets, ``roofline`` turns an account into a predicted time and the bound into a floor,
``stricter`` knows of tiles, waves and waiting besides, ``choices`` says which tiles follow from that, and ``static``
puts what was read from the machine code beside it. ``python -m benchmarks.limits`` prints it all. Modelled
and compiled, not measured.
"""
