"""The names of the files that a run leaves in its folder."""

from headedit.edits.files.card import CARD_FILE
from headedit.edits.files.format import CONFIG_FILE, TENSOR_FILE

EDITS_CONFIG_FILE = CONFIG_FILE
"""Of the edits: the sites, the spec and the base model."""
EDITS_TENSOR_FILE = TENSOR_FILE
"""Of the edits: the vectors and gates."""
OTHER_WEIGHTS_FILE = "trained_weights.safetensors"
"""Weights that were trained besides the edits, by name; ``load_state_dict(..., strict=False)`` takes them."""
README_FILE = CARD_FILE
"""The model card."""
RUN_FILE = "run.json"
"""The record: recipe, settings, seed, sizes and results."""
RUN_YAML = "run.yaml"
"""The settings with every default filled in; training it again repeats the run."""
DATA_FILE = "data.json"
"""What happened to the data: counts, indices, lengths and overlaps, see ``headedit.Data``."""
HISTORY_FILE = "history.jsonl"
"""A line for every logged step."""
PATH_FILE = "path.json"
"""The pruning path: the order of the gates, with losses."""
PATH_TENSOR_FILE = "path.safetensors"
"""The vectors at every level of the pruning path."""
GATES_PLOT = "gates.png"
"""The heatmap of the gates."""
HISTORY_PLOT = "history.png"
"""The curves of the history."""
PATH_PLOT = "path.png"
"""The validation loss along the pruning path."""
SELECTION_PLOT = "selection.png"
"""How often halves of the examples select each gate."""
REPORT_FILE = "report.html"
"""The report, one page."""
