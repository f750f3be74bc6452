"""Writes the golden folder: `python -m tests.storage.golden.make`. Run it once for each version of the format."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

import hfcompress as hfc

HERE = Path(__file__).parent


def main() -> None:
    """Save a tiny BERT with uneven neurons, zeros and both codings of positions, and the tensors to be loaded."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)).eval()
    hfc.prune_structured(model, heads=0.25, neurons=0.3, round_to=1)
    hfc.prune_global_l1(model, 0.5)
    with torch.no_grad():
        dense = model.bert.encoder.layer[1].output.dense.weight
        dense.mul_(torch.rand_like(dense) > 0.97)  # few enough for gaps
        dense[0, 0] = -0.0
    hfc.save_compressed(model, HERE)
    (HERE / "README.md").unlink()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (HERE / "expected").mkdir(exist_ok=True)
    save_file(state, HERE / "expected" / "dense.safetensors")
    for debris in HERE.glob("__pycache__"):
        shutil.rmtree(debris)


if __name__ == "__main__":
    main()
