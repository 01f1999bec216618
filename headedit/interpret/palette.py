"""The colours of all pictures and of the report's page: a quantity has one colour wherever it is drawn.

Most are Okabe and Ito's, darkened until a thin line shows on white. Those of one picture can be told apart by
colour-blind readers (``tests/test_palette.py`` simulates it); those that the report's page shows also show on dark.
"""

SEQUENTIAL = "cividis"
"""The colour map of gates, sizes, accuracies and counts: ordered in lightness, the same to colour-blind eyes."""

COLOURS = {
    # what is done to a head
    "none": "#ececec",
    "offset": "#0072b2",
    "scale": "#d55e00",
    "both": "#cc79a7",
    # a change up and down: of the loss, of a logit
    "rise": "#a6611a",
    "fall": "#018571",
    # the course of a run
    "training_loss": "#009e73",
    "validation_loss": "#aa4499",
    "penalty": "#444444",
    "vector_rate": "#332288",
    "gate_rate": "#a98600",
    "kept": "#444444",
    "refit": "#a98600",
    # seeds, and sets of heads
    "heads": "#332288",
    "jaccard": "#332288",
    "metric": "#117733",
    "chance": "#949494",
    "mean": "#444444",
    "neither_set": "#ececec",
    "first_set": "#d9c400",
    "second_set": "#332288",
    "both_sets": "#7fbf7b",
    # cost
    "step": "#994f00",
    "forward": "#2f9bd6",
    "against_one": "#c08400",
    "file": "#117733",
    "hardened_file": "#999933",
    "enter_first_ms": "#332288",
    "enter_ms": "#117733",
    "add_ms": "#c08400",
    "reference": "#444444",
}
"""By quantity."""

COUNTS = "Greys"
"""The colour map of counts in a figure where every hue means something else."""

DARK = {"none": "#3a3f45"}
"""Colours that are others on a dark page, where cells without an edit are to step back."""

METHODS = {
    "localise": "#0072b2",
    "LoRA r 8": "#d55e00",
    "no gate": "#009e73",
    "jola": "#cc79a7",
    "lofit": "#332288",
    "ist": "#2f9bd6",
    "rst": "#000000",
    "oracle": "#444444",
    "unedited": "#444444",
}
"""By recipe or other method of the benches."""

OTHER_METHOD = "#949494"

OWN_STYLES = {
    "localise": ("#0072b2", "o"),
    "jola": ("#cc79a7", "s"),
    "no gate": ("#009e73", "^"),
    "offset only": ("#009e73", "<"),
    "scale only": ("#009e73", ">"),
    "lofit": ("#332288", "D"),
    "ist": ("#2f9bd6", "v"),
    "rst": ("#000000", "P"),
}
PEER_STYLES = {
    "lora": ("#d55e00", "o"),
    "dora": ("#d55e00", "s"),
    "ia3": ("#e69f00", "^"),
    "ln": ("#e69f00", "D"),
    "bitfit": ("#a6761d", "v"),
    "red": ("#a6761d", "P"),
    "loreft": ("#8c510a", "X"),
    "prompt tuning": ("#8c510a", "*"),
}
STYLES = {
    **OWN_STYLES,
    **PEER_STYLES,
    "few-shot": ("#444444", "x"),
    "zero-shot": (OTHER_METHOD, "."),
    "LoRA r 8": ("#d55e00", "o"),
    "LoRA": ("#d55e00", "o"),
}
"""Colour and marker by method, of the pictures that hold very many; the methods of this package, and others."""

LAYERS = {
    "full": "#555555",
    "attention": "#555555",
    "sliding": "#56b4e9",
    "linear": "#009e73",
    "attention + linear": "#332288",
    "none": "#ffffff",
    "not edited": "#ffffff",
}
"""By kind of layer; none is a colour of the type map, which is drawn next to it."""

OTHER_LAYERS = ("#999933", "#ddcc77")

INK, EDGE, GRID, NO_HEAD, FAINT = "#444444", "#777777", "#dddddd", "#d9d9d9", "#bbbbbb"
"""Lines and small text; edges of swatches; grids; cells without a head; marks that step back."""
