"""Speed, measured: both sides in one process, interleaved, quoted as ratios of medians."""
