"""The page: train, watch, manage and try hypernetworks in a browser. Needs Gradio: ``pip install 'hnkernels[ui]'``."""
