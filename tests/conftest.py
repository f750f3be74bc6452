"""Settings that must be in place before anything imports torch or transformers, and fixtures for all modules."""

import copy
import gc
import hashlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("GPU", "")  # which only test_gpu.py needs
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads, and pytest-xdist uses the cores

import accelerate.utils.memory
import pytest
import torch
from hypothesis import settings

# Models are built inside the tests, so a first example may be slow. A few examples, the same on every run, or very many
# and others each time: HYPOTHESIS_PROFILE=long python -m pytest tests/prune tests/test_losses.py
settings.register_profile("repeatable", max_examples=40, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("all", settings.get_profile("repeatable"))  # and all cases: see LONG in architectures.py
settings.register_profile("long", max_examples=2000, deadline=None, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Without a GPU, seeding those of each kind for later would only format three stack traces, 20 ms, wherever a model or
# a Trainer is made.
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = torch.mtia.manual_seed_all = lambda seed: None

# Every training would end with a search for garbage among all that was ever imported, longer than its steps take.
accelerate.utils.memory.clear_device_cache = lambda garbage_collection=False: None

# What is imported stays, so that nobody need look through it for garbage, now and ever again: a tenth of the time.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


TOGETHER = (
    "cli/test_cli_distill.py",
    "deploy/test_equalization.py",
    "examples/test_imdb.py",
    "prune/test_callbacks_gradual.py",
    "prune/test_sharded.py",
    "search/test_compress.py",
    "shrink/test_held_out.py",
    "shrink/test_plain.py",
    "test_two_processes.py",
    "test_without_hfcompress.py",
)  # their tests share a preparation of many seconds
EXPORTS = (
    "cli/test_cli_export.py",
    "deploy/test_exporting.py",
    "deploy/test_large_models.py",
    "deploy/test_openvino.py",
    "deploy/test_quality_gate.py",
)  # all of these too


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal the tests out one by one, but those of a file that prepares much in one piece, and first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            if file.endswith(EXPORTS):
                return "exports"
            return file if file.endswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _exported_once():
    """Let torch's exporter, which takes seconds, make a graph once of the same model."""
    from hfcompress.deploy import onnx_graph

    graphs, export = {}, onnx_graph._export

    def look_up(module, inputs):
        model = module.model
        if "forward" in vars(model):
            return export(module, inputs)
        about = (type(model), model, module.mask_dtype, inputs.names, model.config.to_json_string())
        key = hashlib.sha256(" ".join(map(str, about)).encode())
        for name, value in model.state_dict().items():
            key.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            key.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else repr(value).encode())
        if key.digest() not in graphs:
            graphs[key.digest()] = export(module, inputs)
        return copy.deepcopy(graphs[key.digest()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_export", look_up)
        yield


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Every test starts from the same random state, whatever ran before it in its process."""
    torch.manual_seed(0)
