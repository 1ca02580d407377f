"""An affine hypernetwork merged into a pipeline's weights, exactly, and as a LoRA, as closely as its rank allows."""

import torch
from diffusers import StableDiffusionPipeline

import hnkernels as hn
from hnkernels.assets import TINY_SD


def main():
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    torch.manual_seed(0)
    net = hn.Hypernetwork((48, 80, 96), activation=None, init="normal").eval()

    def drawn():
        noise = torch.Generator().manual_seed(0)
        return pipe("digit seven", num_inference_steps=4, generator=noise, output_type="pt").images

    with hn.attach(pipe, net):
        attached = drawn()
    for rank in (2, 8, 32):
        _, report = hn.to_lora(net, pipe, rank=rank)
        print(f"as a LoRA of rank {rank}: the worst layer is off by {report.worst:.1%}")
    layers = hn.merge(pipe, net)
    difference = (drawn() - attached).abs().max().item()
    print(f"merged into {len(layers)} layers; the picture differs from the attached one by {difference:.1e}")
    pipe.save_pretrained("merged")


if __name__ == "__main__":
    main()
