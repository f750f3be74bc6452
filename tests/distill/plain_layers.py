"""The losses of layers written from their formulas, which the trainer is compared with."""

import copy
import math

import plain_distillation
import torch
from architectures import batch
from plain_distillation import LABELS, model_inputs

DATA = batch(24, num_labels=LABELS)
BOTH = {"hidden_weight": 0.3, "relation_weight": 0.7}
WIDER = {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 96}


def make(student, teacher, directory, data=DATA, **settings):
    return plain_distillation.make(student, teacher, directory, data, **settings)


def project_attention(model, inputs, layer):
    """Queries, keys and values of a layer of a BERT or GPT-2, from the hidden states that go into it."""
    hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
    if model.config.model_type == "gpt2":
        block = model.transformer.h[layer]
        return block.attn.c_attn(block.ln_1(hidden)).split(model.config.hidden_size, dim=-1)
    attention = model.bert.encoder.layer[layer].attention.self
    return [attention.query(hidden), attention.key(hidden), attention.value(hidden)]


def plain_hidden(student, teacher, mask, projection=None):
    student = student if projection is None else student @ projection.T
    return torch.stack(
        [((one[real] - other[real]) ** 2).mean() for one, other, real in zip(student, teacher, mask == 1, strict=True)]
    ).mean()


def plain_relations(student, teacher, heads, mask):
    """The loss of MiniLMv2 by its formula: one text, one relation head after the other."""
    found = []
    for one, other, real in zip(student, teacher, mask == 1, strict=True):
        for mine, theirs in zip(one[real].chunk(heads, -1), other[real].chunk(heads, -1), strict=True):
            p, q = ((x @ x.T / math.sqrt(x.shape[-1])).softmax(-1) for x in (mine, theirs))
            found.append((q * (q / p).log()).sum(-1).mean())
    return torch.stack(found).mean()


def plain_objective(student, teacher, here, *, layer_map, heads, relation_layer=-1, projection=None):
    inputs, mask = model_inputs(here), here["attention_mask"]
    ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher.eval()))
    p, q = ours.logits.softmax(-1), theirs.logits.softmax(-1)
    one_hot = torch.nn.functional.one_hot(here["labels"], LABELS)
    hidden = [
        plain_hidden(ours.hidden_states[m], theirs.hidden_states[n], mask, projection) for m, n in layer_map.items()
    ]
    layers = len(ours.hidden_states) - 2, range(len(theirs.hidden_states) - 1)[relation_layer]
    attention = [
        project_attention(model, inputs, layer) for model, layer in zip((student, teacher), layers, strict=True)
    ]
    relations = [plain_relations(mine, their, heads, mask) for mine, their in zip(*attention, strict=True)]
    logits = 0.5 * ((p - q) ** 2).mean() + 0.5 * ((p - one_hot) ** 2).mean()
    return logits + BOTH["hidden_weight"] * sum(hidden) / len(hidden) + BOTH["relation_weight"] * sum(relations) / 3


def plain_training(student, teacher, projection=None, **settings):
    parameters = [*student.parameters(), *([] if projection is None else [projection])]
    update = torch.optim.SGD(parameters, lr=0.1)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    for start in range(0, len(DATA["labels"]), 8):
        update.zero_grad()
        here = {key: value[start : start + 8] for key, value in DATA.items()}
        plain_objective(student, teacher, here, projection=projection, **settings).backward()
        update.step()
