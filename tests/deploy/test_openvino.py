"""openvino.convert_model on shrunken models, from memory and from their folder."""

import pytest
import torch
from architectures import batch, build
from transformers import AutoModelForSequenceClassification

import hfcompress as hfc

openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the tracer


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert", "deberta-v2"])
def test_a_model_with_a_plan_is_converted(architecture, loaded, tmp_path):
    model = build(architecture, layers=3).eval()
    hfc.prune_structured(model, heads=0.5, neurons=0.4)
    if loaded:
        model.save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    model.config.use_cache = False  # the tracer knows no cache
    inputs = {name: value for name, value in batch(2, 8).items() if name != "labels"}
    converted = openvino.convert_model(model, example_input=inputs)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.tensor(compiled({name: value.numpy() for name, value in inputs.items()})[0])
    with torch.no_grad():
        torch.testing.assert_close(found, model(**inputs).logits, atol=1e-4, rtol=1e-4)
