"""How much each attention head and feed-forward neuron matters: the scores that `prune_structured` ranks by."""

from hfcompress.shrink.importance import IMPORTANCES, Importance, importance_scores, l1_scores, mask_gradients
from hfcompress.shrink.surgeon import obs_scores

__all__ = ["IMPORTANCES", "Importance", "importance_scores", "l1_scores", "mask_gradients", "obs_scores"]
