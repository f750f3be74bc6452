"""A stand-in for the clock of `compress`: seconds that grow with the FLOPs, counted once for all rounds."""

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
