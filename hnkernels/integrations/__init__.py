"""Programs in which hypernetworks are used, and how hnkernels gets into them: kohya's trainers, ComfyUI, the web UIs,
diffusers."""
