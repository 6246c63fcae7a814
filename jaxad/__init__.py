"""Anomaly detection and anomaly generation with diffusion models in JAX."""
