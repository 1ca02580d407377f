"""The context hypernetwork as modules: the table of activations, the MLP, the pair per width."""
