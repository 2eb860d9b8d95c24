"""Measuring and showing what a model does."""
