"""Best practice for hypernetworks, measured on the embedded model: questions, runs, scores, statistics and the page."""
