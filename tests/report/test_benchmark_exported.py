"""Exported models in measure and compare: anything with a config, stored_bytes and a call that returns logits."""

import json

import pytest
import torch
from architectures import batch, build, rows, word_tokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

import hfcompress as hfc


class Exported:
    """Runs a model as another runtime would: by a call alone."""

    stored_bytes = 12345

    def __init__(self, model, **more):
        self._model, self.config, self.seen = model.eval(), model.config, []
        vars(self).update(more)

    def __call__(self, **inputs):
        self.seen.append({name: tuple(value.shape) for name, value in inputs.items()})
        with torch.no_grad():
            return SequenceClassifierOutput(logits=self._model(**inputs).logits)


@pytest.mark.parametrize("make", [batch, lambda count: rows(batch(count))], ids=["tensors", "rows"])
def test_an_exported_model_stands_beside_torchs(make):
    model = build().eval()
    found = hfc.compare({"torch": model, "file": Exported(model)}, make(12), batch_size=(1, 4), repeats=8)
    one, other = found.rows.values()
    assert (other.accuracy, other.agreement, other.bytes) == (one.accuracy, 1.0, 12345)
    assert [part.label for part in other.passes] == [part.label for part in one.passes]
    assert found.speedup("file") is not None
    unknown = ("parameters", "nonzeros", "zeros", "sparsity", "bytes_in_memory", "flops", "peak_bytes")
    assert all(getattr(other, name) is None for name in unknown)
    assert "Exported models: MB are those of the file" in found.to_text()
    json.loads(found.to_json())
    assert "file" in found.to_markdown(verbose=True)


def test_an_exported_model_may_be_first_and_the_reference():
    model = build().eval()
    found = hfc.compare({"file": Exported(model), "torch": model}, batch(6), repeats=1)
    assert found.rows["torch"].agreement == 1.0
    assert found.ratios("torch")["parameters"] is None
    assert hfc.measure(model, batch(6), reference=Exported(model), repeats=1).agreement == 1.0


def test_a_page_and_pictures_show_it():
    pytest.importorskip("matplotlib")
    model = build().eval()
    page = hfc.compare({"torch": model, "file": Exported(model)}, batch(6), repeats=1).to_html()
    assert "file" in page


def test_its_logits_are_measured_text_by_text():
    exported = Exported(build())
    hfc.measure(exported, batch(12), repeats=1)
    assert {shape["input_ids"][0] for shape in exported.seen[:12]} == {1}


def test_only_inputs_that_it_takes_are_passed():
    exported = Exported(build(), input_names=frozenset(("input_ids", "attention_mask")))
    data = [row | {"token_type_ids": [0] * 6} for row in rows(batch(4))]
    hfc.measure(exported, data, repeats=1)
    assert all(set(one) == {"input_ids", "attention_mask"} for one in exported.seen)


def test_dummy_texts_and_texts_are_read():
    exported = Exported(build())
    assert hfc.measure(exported, length=20, batch_size=2, repeats=1).passes[0].label == "2 x 20"
    assert hfc.measure(exported, ["a good film", "bad"], processing_class=word_tokenizer(), repeats=1).passes


def test_its_own_limit_holds():
    with pytest.raises(hfc.CompressionError, match="reads 1 to 5"):
        hfc.measure(Exported(build(), max_tokens=5), batch(4), repeats=1)


@pytest.mark.parametrize("wrong", ["folder", None, object()])
def test_what_is_no_model_is_refused_by_name(wrong):
    with pytest.raises(hfc.CompressionError, match=r"models\['small'\] must be a model, not"):
        hfc.compare({"large": build(), "small": wrong}, batch(4))
