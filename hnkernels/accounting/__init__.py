"""What a layer with a hypernetwork launches, computes and moves, counted: hnkernels' kernels beside eager PyTorch."""
