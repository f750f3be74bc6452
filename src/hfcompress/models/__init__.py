"""What a Hugging Face classifier is made of. Nothing here prunes, trains or writes a model."""
