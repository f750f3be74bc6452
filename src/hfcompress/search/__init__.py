"""All at once: a ladder of smaller models, each a number of times as fast as the original, from one call."""
