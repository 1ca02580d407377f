"""Hypernetworks in models that are changed by patches: ComfyUI's ``ModelPatcher``, and Forge's with its interface.

A patcher has the model in ``model.diffusion_model``, is copied with ``clone()``, and hands its patches to the attention
layers when the model runs. Nothing here knows the program around it.
"""
