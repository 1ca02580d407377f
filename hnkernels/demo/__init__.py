"""The demonstrations: an embedded model, picture sets, scores, and the trainings that move print to other styles."""
