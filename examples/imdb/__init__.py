"""A paper's comparison on IMDB reviews: BERT, GPT-2, pruned BERT and a distilled student."""
