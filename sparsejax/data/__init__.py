"""Datasets (tensorflow-datasets builders, no TensorFlow) and input pipelines (grain)."""
