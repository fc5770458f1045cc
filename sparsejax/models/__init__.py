"""Networks (Flax linen), their per-layer FLOPs, converters of published weights."""
