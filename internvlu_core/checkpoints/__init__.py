"""Checkpoints: their JSON, their files in every layout, loading, conversion and download."""
