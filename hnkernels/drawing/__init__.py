"""Pictures drawn with a pipeline and networks: asked for, drawn, laid out, and kept with their settings.

Used by ``hnkernels sample`` and by the page; nothing here knows of either.
"""
