"""Captioning: `folder` says whether a folder holds a captioning model and imports nothing heavy; `blip` is the captioner."""
