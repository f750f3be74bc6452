"""``hfcompress shrink`` against models shrunk in Python."""

import random

import torch
from command_line import NUMBERS, load, read_reviews
from transformers import AutoModel, AutoTokenizer

import hfcompress as hfc

IDS = torch.tensor([[2, 3, 4]])


def test_shrink_removes_the_fractions_asked(models, tmp_path, run):
    half = run("shrink", models / "bert", "--heads", 0.5, "--neurons", 0.5, "-o", tmp_path / "half", "--json")
    assert half["heads_removed"] == half["neurons_removed"] == 0.5
    assert half["parameters"][1] == sum(p.numel() for p in load(tmp_path / "half").parameters())


def test_shrink_drops_the_layers_named(models, tmp_path, run):
    run("shrink", models / "bert", "--drop-layers", "1,2", "-o", tmp_path / "two")
    kept = load(models / "bert")
    kept.bert.encoder.layer = kept.bert.encoder.layer[::3]
    assert torch.allclose(load(tmp_path / "two")(IDS).logits, kept(IDS).logits)


def test_shrink_ranks_by_the_loss_on_rows_drawn(models, data, tmp_path, run):
    ranked = ("--importance", "fisher", "--data", data / "test.jsonl", *NUMBERS, "--rows", 8)
    run("shrink", models / "gpt2", "--flops", 0.7, *ranked, "-o", tmp_path / "ranked")
    tokenizer = AutoTokenizer.from_pretrained(models / "gpt2")
    drawn = [
        {"input_ids": tokenizer(row["review"])["input_ids"], "labels": int(row["sentiment"] == "YES")}
        for row in random.Random(0).sample(read_reviews(data), 8)
    ]
    expected = load(models / "gpt2")
    hfc.prune_structured(expected, flops=0.7, importance="fisher", dataset=drawn)
    assert torch.allclose(load(tmp_path / "ranked")(IDS).logits, expected(IDS).logits, atol=1e-6)
    assert load(tmp_path / "ranked").config.pad_token_id is None  # as before


def test_a_model_shrunk_evenly_is_a_plain_one(models, tmp_path, run):
    run("shrink", models / "bert", "--neurons", 0.5, "--scope", "layer", "-o", tmp_path / "out")
    assert AutoModel.from_pretrained(tmp_path / "out").config.intermediate_size == 32
