"""Names of metrics and extractors: what a command line accepts; imports nothing, so it is quick."""

METRICS = ("fd", "kid", "is", "precision_recall")
EXTRACTORS = ("classifier", "pixels", "inception")
SUBSET_SIZE = 1000  # of KID, as torch-fidelity's
