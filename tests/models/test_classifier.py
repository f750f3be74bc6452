"""The one rule of how many tokens a model reads: against what the models themselves do."""

import pytest
import torch
from architectures import WITH_NEURONS, build
from transformers import AutoModelForSequenceClassification, IBertConfig, LongformerConfig

from hfcompress.models.classifier import max_tokens
from hfcompress.models.inputs import dummy_inputs

UNLIMITED = ("t5", "bloom", "xlnet")
OFFSET = ("roberta", "xlm-roberta", "camembert")  # their positions start behind the padding index, 0 here
# What is over is an error of the model itself; others read on with relative or rotary positions.
RAISES = ("bert", "gpt2", "distilbert", "electra", "albert", "mpnet", *OFFSET, "gpt-neo", "opt", "bart", "convbert")


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_a_model_reads_as_many_tokens_as_it_says(architecture):
    model = build(architecture).eval()
    limit = max_tokens(model)
    assert (limit is None) is (architecture in UNLIMITED)
    assert model(**dummy_inputs(model, limit or 300)).logits.isfinite().all()


@pytest.mark.parametrize("architecture", RAISES)
def test_a_model_reads_not_one_token_more(architecture):
    model = build(architecture).eval()
    text = dummy_inputs(model, 64)
    assert text["input_ids"].shape[1] == max_tokens(model)
    longer = {name: torch.cat([value[:, :1], value], dim=1) for name, value in text.items()}
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(**longer)


@pytest.mark.parametrize(("architecture", "limit"), [*((name, 63) for name in OFFSET), ("mpnet", 62), ("bert", 64)])
def test_positions_start_behind_the_padding_index(architecture, limit):
    assert max_tokens(build(architecture)) == limit


@pytest.mark.parametrize(("kind", "more"), [(LongformerConfig, {"attention_window": [4]}), (IBertConfig, {})])
def test_relatives_of_roberta_read_as_many_tokens(kind, more):
    """Also where the positions are embedded by a module of the architecture's own (I-BERT)."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = kind(**sizes, **more, intermediate_size=64, max_position_embeddings=66, pad_token_id=1)
    assert max_tokens(AutoModelForSequenceClassification.from_config(config)) == 64


@pytest.mark.parametrize("architecture", WITH_NEURONS)
def test_dummy_texts_have_neither_padding_nor_an_early_end(architecture):
    model = build(architecture)
    ids = dummy_inputs(model, 12, batch_size=20)["input_ids"]
    config = model.config
    assert ids.shape == (20, 12)
    assert not (ids == config.pad_token_id).any()
    if getattr(config, "eos_token_id", None) is not None:
        assert not (ids[:, :-1] == config.eos_token_id).any()
