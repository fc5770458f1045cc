"""Names of metrics and extractors: what a command line accepts; imports nothing, so it is quick."""

DEFAULT_METRICS = ("fd", "kid", "is", "precision_recall")
METRICS = (*DEFAULT_METRICS, "nearest")  # the last needs a reference set that isn't trained on
EXTRACTORS = ("classifier", "pixels", "inception")
SUBSET_SIZE = 1000  # of KID, as torch-fidelity's
