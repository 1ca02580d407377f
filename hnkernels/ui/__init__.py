"""The page: trains, shows, manages and tries hypernetworks in a browser. Needs Gradio: ``pip install 'hnkernels[ui]'``."""
