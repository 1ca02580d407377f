"""The kinds of models that can be trained on, one small file each."""
