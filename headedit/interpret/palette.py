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
    # seeds, and sets of heads
    "heads": "#332288",
    "jaccard": "#332288",
    "metric": "#117733",
    "chance": "#949494",
    "mean": "#444444",
    "neither_set": "#ececec",
    "first_set": "#56b4e9",
    "second_set": "#e69f00",
    "both_sets": "#222222",
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
