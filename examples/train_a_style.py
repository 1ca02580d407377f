"""Trains a hypernetwork on a folder of pictures with captions, and draws with it.

python train_a_style.py [my_images [steps]]
"""

import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline

import hnkernels as hn
from hnkernels.assets import TINY_SD
from hnkernels.demo.sample_pictures import write_sample_pictures


def main(data="digits", steps="200"):
    if not Path(data).exists():
        write_sample_pictures(Path(data))  # 256 handwritten digits
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    net = hn.Hypernetwork((48, 80, 96), activation="silu", init="identity", name="ink")
    config = {
        "learning_rate": 5e-3,
        "lr_scheduler": "cosine",
        "batch_size": 8,
        "max_steps": int(steps),
        "max_epochs": int(steps),
        "validation_split": 16,
        "output_dir": "runs/ink",
    }
    result = hn.HypernetworkTrainer(net, pipe, config, data).train()
    print(f"{result.step} steps, mean loss {result.loss:.4f}, files: {', '.join(map(str, result.files))}")
    with hn.attach(pipe, net.eval()):
        pipe("digit seven", num_inference_steps=20, guidance_scale=3.0).images[0].save("seven.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
