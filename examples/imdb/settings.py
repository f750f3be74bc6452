"""The presets, and the systems that are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """How much data and training; the paper's own figures are those of ``PRESETS["paper"]``."""

    reviews: int
    max_length: int
    learning_rate: float
    epochs: int
    further_epochs: int
    student_epochs: int
    batch_size: int = 16
    student_batch_size: int = 8
    models: str = "packaged"


PRESETS = {
    "paper": Preset(4000, 128, 1e-5, epochs=5, further_epochs=5, student_epochs=13),
    # A tenth of the paper's work: shorter reviews, fewer of them, and larger steps to make up for the fewer epochs.
    "quick": Preset(1000, 64, 5e-5, epochs=2, further_epochs=1, student_epochs=3),
    "smoke": Preset(40, 32, 1e-3, epochs=2, further_epochs=1, student_epochs=2, batch_size=8, models="tiny"),
}


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        key: Folder name of its results.
        title: Its name in tables and pictures.
        figure: Number of the paper's figure, or None for a control that the paper lacks.
        amount: Fraction of BERT's prunable weights set to zero before fine-tuning goes on, or None.
        keep: Whether those zeros are kept.
        paper_accuracy: Train and validation accuracy after the last epoch, read off the paper's figure.
    """

    key: str
    title: str
    figure: int | None = None
    amount: float | None = None
    keep: bool = True
    paper_accuracy: tuple[float, float] | None = None


SYSTEMS = (
    System("bert", "BERT", 2, paper_accuracy=(0.96, 0.84)),
    System("gpt2", "GPT-2", 1, paper_accuracy=(0.85, 0.80)),
    System("pruned-10", "BERT pruned 10 %", 3, amount=0.1, paper_accuracy=(1.00, 0.84)),
    System("pruned-20", "BERT pruned 20 %", 4, amount=0.2, paper_accuracy=(1.00, 0.84)),
    System("student", "KD student", 5, paper_accuracy=(0.97, 0.74)),
    System("control", "BERT trained on, nothing pruned"),
    System("pruned-20-not-kept", "BERT pruned 20 %, zeros not kept", amount=0.2, keep=False),
)
