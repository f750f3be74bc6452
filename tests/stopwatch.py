"""A stand-in for the clock of `compress`: seconds that grow with the FLOPs, counted once for all rounds."""

from pathlib import Path

from hfcompress.deploy import exporting
from hfcompress.models.exported import ExportedModule
from hfcompress.models.profiling import count_flops
from hfcompress.report import benchmark
from hfcompress.search import clock

REST = 1e5  # what is not counted


def time_by_flops(patch):
    """Time models by their FLOPs where plans are searched for and where they are measured."""

    def runner(model, batch):
        seconds = count_flops(model, batch) + REST
        return lambda: seconds

    def rounds(models, batches, repeats):
        return {name: [count_flops(models[name], batch) + REST] * 8 for name, batch in batches.items()}

    patch.setattr(clock, "_runner", runner)
    patch.setattr(clock, "_seconds", lambda run: run())
    patch.setattr(benchmark, "_time_rounds", rounds)


def time_exports_by_flops(patch):
    """The same of models that are exported, by the FLOPs of those in torch; what is timed in a search runs once."""
    time_by_flops(patch)
    export, exported, rounds, made = exporting.export, clock.Clock._exported, benchmark._time_rounds, {}

    def remember(model, directory, **settings):
        made[Path(directory)] = model
        return export(model, directory, **settings)

    def run_once(self, model, folder):
        exported(self, model, folder)()
        return clock._runner(model, self.batch)

    def rounds_of_all(models, batches, repeats):
        in_torch = dict(models)
        for name, one in models.items():
            if isinstance(one, ExportedModule):
                in_torch[name] = made[one.exported.files[0].parent]
        return rounds(in_torch, batches, repeats)

    patch.setattr(exporting, "export", remember)
    patch.setattr(clock.Clock, "_exported", run_once)
    patch.setattr(benchmark, "_time_rounds", rounds_of_all)
