"""A trained model -> answers, without Lightning."""
