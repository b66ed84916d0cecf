"""Thin Prefect tasks: check inputs, call or launch ``models/``, record. One adapter per outside system."""
