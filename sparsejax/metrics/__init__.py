"""Feature extractors and distances between sets of pictures; knows arrays, no run."""
