"""Proof by compilation: every kernel, in every form that the library launches, for every target, without a device.

``cases`` makes the launches on the meta device, ``compilation`` turns them into machine code, ``machine_code`` reads
that, ``limits`` and ``checks`` judge it, and ``report`` writes it down. ``python -m benchmarks.compiled`` runs it all.
"""
