"""An extension for AUTOMATIC1111's web UI and for Forge. A file ``scripts/hnkernels_script.py`` in a folder of theirs,
``extensions/hnkernels``, puts it there:

    from hnkernels.integrations.webui import HypernetworkScript, register

    register()
"""

from hnkernels.integrations.webui.extension import register
from hnkernels.integrations.webui.script import HypernetworkScript

__all__ = ["HypernetworkScript", "register"]
