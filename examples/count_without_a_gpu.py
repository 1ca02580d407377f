"""What the layers of Stable Diffusion 1.5 would launch on GPUs that are not here. Counted, not measured."""

import hnkernels as hn


def main():
    net = hn.Hypernetwork((320, 640, 768, 1280), activation="relu", layer_norm=True)
    layers = {"self-attention 320": (320, 8192, 320), "cross-attention 768": (768, 154, 1280)}
    for target in ("sm_80", "sm_90", "gfx942"):
        for name, (width, tokens, features) in layers.items():
            found = hn.explain(*net[width], tokens=tokens, out_features=features, training=True, target=target)
            print(
                f"{target}, {name}: {len(found.forward)} launches forward, {len(found.backward)} backward, "
                f"{found.bytes_moved / 1e6:.0f} MB, {found.flops / 1e9:.1f} GFLOP"
            )
    print(hn.explain(*net[320], tokens=8192, training=False, target="sm_90"))


if __name__ == "__main__":
    main()
