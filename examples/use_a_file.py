"""A hypernetwork's file in a diffusers pipeline, at three strengths; the pictures lie beside each other in a PNG.

python use_a_file.py [style.pt [path/to/pipeline]]
"""

import sys

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import hnkernels as hn
from hnkernels.assets import TINY_SD


def main(file=None, model=TINY_SD):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    if file is None:  # none at hand: a random one, as a new one starts in the web UI
        torch.manual_seed(0)
        net = hn.Hypernetwork((48, 80, 96), activation="relu", init="normal")
        hn.save_hypernetwork(net, "style.pt")
        file = "style.pt"
    pictures = []
    with hn.attach(pipe, hn.load_hypernetwork(file)) as adapter:
        for strength in (0.0, 0.5, 1.0):
            adapter.strength = strength
            noise = torch.Generator().manual_seed(0)
            pictures.append(pipe("digit seven", num_inference_steps=10, generator=noise).images[0])
    sheet = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
    for place, one in enumerate(pictures):
        sheet.paste(one, (place * one.width, 0))
    sheet.save("strengths.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
