"""From a folder of pictures and captions to batches of latents and text embeddings."""
