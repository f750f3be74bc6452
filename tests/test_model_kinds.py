"""What is no text classifier, no data set and no tokenizer is refused in one sentence by every public function."""

import copy
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from architectures import SHRINKABLE, WITH_NEURONS, build
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
    ViTConfig,
    ViTForImageClassification,
)

import hfcompress as hfc
from hfcompress.models.classifier import check_model_kind

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0
)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
)
ROWS = [{"input_ids": [1, 2, 3 + n % 5], "labels": n % 2} for n in range(8)]


def tokenizer():
    core = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


def classifier():
    return BertForSequenceClassification(CONFIG).eval()


def arguments():
    return hfc.DistillationArguments(
        tempfile.gettempdir(), use_cpu=True, report_to="none", label_loss="cross_entropy", disable_tqdm=True
    )


def trainer(model, teacher):
    return hfc.DistillationTrainer(model, arguments(), teacher=teacher, train_dataset=ROWS)


OF_BERT = (
    BertModel,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertForMaskedLM,
    BertLMHeadModel,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
OTHER_HEADS = {kind.__name__: lambda kind=kind: kind(CONFIG) for kind in OF_BERT}
OTHER_HEADS |= {kind.__name__: lambda kind=kind: kind(GPT2) for kind in (GPT2Model, GPT2LMHeadModel)}
OTHER_HEADS |= {"ViTForImageClassification": lambda: ViTForImageClassification(VIT)}
NO_MODELS = {
    "None": lambda: None,
    "a name": lambda: "bert-base-uncased",
    "a path": lambda: Path("models/bert"),
    "a class": lambda: BertForSequenceClassification,
    "an automatic class": lambda: AutoModelForSequenceClassification,
    "a config": lambda: CONFIG,
    "a tokenizer": tokenizer,
    "a state dict": lambda: classifier().state_dict(),
    "a pipeline": lambda: TextClassificationPipeline(model=classifier(), tokenizer=tokenizer()),
    "what holds a model": lambda: SimpleNamespace(model=classifier()),
    "a number": lambda: 7,
}
DATA = datasets.Dataset.from_list([{"text": "good"}, {"text": "bad"}])
NEED_A_CLASSIFIER = {
    "prune_structured": lambda model: hfc.prune_structured(model, heads=0.5),
    "prune_vocabulary": lambda model: hfc.prune_vocabulary(model, tokenizer(), ["good bad"]),
    "student_from_teacher": lambda model: hfc.student_from_teacher(model, 1),
    "DistillationTrainer": lambda model: trainer(model, classifier()),
    "its teacher": lambda model: trainer(classifier(), [model]),
    "cache_teacher_logits": lambda model: hfc.cache_teacher_logits(model, DATA, processing_class=tokenizer()),
    "measure": lambda model: hfc.measure(model),
    "measure with inputs": lambda model: hfc.measure(model, ROWS),
    "measure's reference": lambda model: hfc.measure(classifier(), ROWS, reference=model or 0),
    "compare": lambda model: hfc.compare({"one": classifier(), "other": model}),
    "export": lambda model: hfc.export(model, "onnx", processing_class=tokenizer()),
    "compress": lambda model: hfc.compress(model, ROWS, processing_class=tokenizer(), speedup=2),
    "mask_gradients": lambda model: hfc.importance.mask_gradients(model, [], []),
    "obs_scores": lambda model: hfc.importance.obs_scores(model, [], ROWS),
    "importance_scores": lambda model: hfc.importance.importance_scores(model, [], "fisher", []),
}
TAKE_ANY_MODULE = {
    "prune_global_l1": lambda model: hfc.prune_global_l1(model, 0.5),
    "sparsity_report": lambda model: hfc.sparsity_report(model),
    "KeepSparsity": lambda model: hfc.KeepSparsity().read(model),
    "GradualPruning": lambda model: hfc.GradualPruning(0.5).read(model),
    "save_compressed": lambda model: hfc.save_compressed(model, tempfile.mkdtemp()),
    "importance_scores": lambda model: hfc.importance.importance_scores(model, [], "l1", None),
}
ASK_FOR_A_MODEL = NEED_A_CLASSIFIER | TAKE_ANY_MODULE | {"l1_scores": lambda one: hfc.importance.l1_scores(one, None)}


def refused(call, *names):
    with pytest.raises(hfc.CompressionError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    for name in names:
        assert name in message, message


@pytest.mark.parametrize("kind", OTHER_HEADS)
@pytest.mark.parametrize("function", NEED_A_CLASSIFIER)
def test_models_that_classify_no_texts_are_refused(function, kind):
    model = OTHER_HEADS[kind]()
    refused(lambda: NEED_A_CLASSIFIER[function](model), kind, "must be a sequence classifier")


@pytest.mark.parametrize("kind", OTHER_HEADS)
@pytest.mark.parametrize("function", TAKE_ANY_MODULE)
def test_what_needs_no_classifier_takes_any_model(function, kind):
    TAKE_ANY_MODULE[function](OTHER_HEADS[kind]())


@pytest.mark.parametrize("kind", NO_MODELS)
@pytest.mark.parametrize("function", ASK_FOR_A_MODEL)
def test_what_is_no_model_is_refused(function, kind):
    refused(lambda: ASK_FOR_A_MODEL[function](NO_MODELS[kind]()), " must be a model")


def test_every_public_function_of_a_model_is_among_these():
    signatures = Path(__file__).with_name("public_signatures.txt").read_text()
    of_models = set(re.findall(r"^(\w+)(?:\.read)?\((?:self, )?(?:models?|teacher)\b", signatures, re.MULTILINE))
    of_models |= {name for name in hfc.importance.__all__ if callable(getattr(hfc.importance, name))}
    assert len(of_models) > 12
    assert of_models - {"Importance"} == {name.split()[0].removesuffix("'s") for name in ASK_FOR_A_MODEL} - {"its"}


def test_a_list_of_models_is_refused_by_name():
    refused(lambda: hfc.compare([classifier()]), "models is a list", "by name")
    refused(lambda: hfc.compare(classifier()), "models is a BertForSequenceClassification")
    refused(lambda: hfc.measure([classifier()]), "model must be a model, not list")


@pytest.mark.parametrize("architecture", sorted({*SHRINKABLE, *WITH_NEURONS}))
def test_every_classifier_of_texts_is_one(architecture):
    check_model_kind(build(architecture))


def test_every_automatic_classifier_has_the_name_that_is_asked_for():
    names = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._model_mapping.values()
    assert names
    assert not [name for name in names if "ForSequenceClassification" not in str(name)]


class OfOnesOwn(BertModel):
    """A classifier around a base model."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, 2)

    def forward(self, input_ids=None, attention_mask=None, **inputs):
        return {"logits": self.head(super().forward(input_ids, attention_mask).pooler_output)}


class Around(nn.Module):
    """One that is no model of transformers, as a cross-encoder is."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids=None, attention_mask=None):
        return self.model(input_ids, attention_mask)


def test_classifiers_of_ones_own_and_wrapped_ones_are_taken():
    for model in (OfOnesOwn(CONFIG), Around(classifier()), nn.DataParallel(classifier())):
        assert hfc.measure(model.eval(), ROWS).examples == len(ROWS)
    refused(lambda: hfc.measure(nn.DataParallel(BertForMaskedLM(CONFIG))), "BertForMaskedLM has a head")


NO_DATA = {
    "a name": lambda: "imdb",
    "a path": lambda: Path("reviews.csv"),
    "a dict of splits": lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
    "a dict of columns": lambda: {"text": ["good"], "labels": [0]},
    "texts": lambda: ["good", "bad"],
    "a number": lambda: 3,
    "a class": lambda: datasets.Dataset,
    "a model": classifier,
}
TAKE_DATA = {
    "prune_structured": lambda data: hfc.prune_structured(classifier(), heads=0.5, dataset=data),
    "export": lambda data: hfc.export(classifier(), "onnx", processing_class=tokenizer(), dataset=data),
    "export int8": lambda data: hfc.export(
        classifier(), "onnx", processing_class=tokenizer(), dtype="int8", dataset=data
    ),
    "train_dataset": lambda data: hfc.DistillationTrainer(
        classifier(), arguments(), teacher=classifier(), train_dataset=data
    ),
    "eval_dataset": lambda data: hfc.DistillationTrainer(
        classifier(), arguments(), teacher=classifier(), train_dataset=ROWS, eval_dataset={"test": data}
    ),
}


@pytest.mark.parametrize("kind", NO_DATA)
@pytest.mark.parametrize("function", TAKE_DATA)
def test_what_holds_no_rows_is_refused(function, kind):
    refused(lambda: TAKE_DATA[function](NO_DATA[kind]()), "must hold rows with 'input_ids'")


@pytest.mark.parametrize("kind", NO_DATA)
def test_the_logits_of_what_holds_no_rows_are_not_cached(kind):
    refused(lambda: hfc.cache_teacher_logits(classifier(), NO_DATA[kind](), processing_class=tokenizer()), "dataset")


@pytest.mark.parametrize("kind", sorted(NO_DATA.keys() - {"texts"}))
def test_inputs_that_are_none_are_refused(kind):
    refused(lambda: hfc.measure(classifier(), NO_DATA[kind]()), "the inputs for 'model'")


NO_TOKENIZERS = {
    "a name": lambda: "bert-base-uncased",
    "a path": lambda: Path("models/bert"),
    "a class": lambda: BertTokenizerFast,
    "a fast core": lambda: Tokenizer(WordLevel({"a": 0}, unk_token="a")),
    "a model": classifier,
    "a dict": lambda: {"input_ids": [[1]]},
}
TAKE_A_TOKENIZER = {
    "measure": lambda one: hfc.measure(classifier(), ["good"], processing_class=one),
    "compare": lambda one: hfc.compare({"a": classifier()}, ["good"], processing_class={"a": one}),
    "export": lambda one: hfc.export(classifier(), "onnx", processing_class=one),
    "cache_teacher_logits": lambda one: hfc.cache_teacher_logits(classifier(), DATA, processing_class=one),
    "save_compressed": lambda one: hfc.save_compressed(classifier(), tempfile.mkdtemp(), processing_class=one),
    "prune_vocabulary": lambda one: hfc.prune_vocabulary(classifier(), one, ["good"]),
    "the student's": lambda one: hfc.DistillationTrainer(
        classifier(), arguments(), teacher=classifier(), train_dataset=ROWS, processing_class=one
    ),
    "the teacher's": lambda one: hfc.DistillationTrainer(
        classifier(), arguments(), teacher=classifier(), train_dataset=ROWS, teacher_processing_class=one
    ),
}


@pytest.mark.parametrize("kind", NO_TOKENIZERS)
@pytest.mark.parametrize("function", TAKE_A_TOKENIZER)
def test_what_is_no_tokenizer_is_refused(function, kind):
    refused(lambda: TAKE_A_TOKENIZER[function](NO_TOKENIZERS[kind]()), "tokenizer")


def test_a_refused_model_stays_as_it_was():
    model = BertForMaskedLM(CONFIG)
    before = copy.deepcopy(model.state_dict())
    for function in NEED_A_CLASSIFIER.values():
        refused(lambda function=function: function(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
