"""Adapter files and their arithmetic: reading, writing, naming schemes, metadata, stacks. Needs torch and safetensors only."""
