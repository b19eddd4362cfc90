"""Model families: how each is told from a file's header, loaded, encoded, predicted, named and sampled."""
