"""The demonstration: an embedded model, two picture sets, scores, and the training that moves print to handwriting."""
