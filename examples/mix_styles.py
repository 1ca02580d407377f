"""One weight hypernetwork with two styles: a picture in each, and one in the middle, drawn in one batch."""

import torch
from diffusers import StableDiffusionPipeline

import hnkernels as hn
from hnkernels.assets import TINY_SD


def main():
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD)
    # Untrained, it is the base model, because B is zero. See the guide for training one.
    gen = hn.WeightHypernetwork(["attn1", "attn2"], hidden_dim=32, rank=4, styles=("ink", "oil"), model=pipe)
    adapter = hn.attach(pipe, gen)
    conditions = [{"ink": 1.0}, {"ink": 0.5, "oil": 0.5}, {"oil": 1.0}]
    with adapter.condition(conditions), torch.no_grad():
        pictures = pipe(["digit seven"] * 3, num_inference_steps=10).images
    adapter.detach()
    for picture, name in zip(pictures, ("ink", "between", "oil"), strict=True):
        picture.save(f"{name}.png")
    with torch.no_grad():
        lora = gen.generate_weights({"ink": 0.5, "oil": 0.5}).to_lora_state_dict()
    print(f"a LoRA of {len(lora)} tensors, as pipe.load_lora_weights takes it")


if __name__ == "__main__":
    main()
