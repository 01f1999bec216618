"""Messages about a name that does not exist list what is possible once."""

import re

import pytest

from headedit import EditConfig, HeadEditError
from headedit.bench.compare.learning import METHODS, check_method
from headedit.bench.compare.methods import method, methods
from headedit.data.config import check_fields
from headedit.data.formats import NAMES
from headedit.errors import suggest
from headedit.evaluation.tasks.task_files import find_task, packaged_tasks
from headedit.training.config import ModelConfig, shipped_configs
from headedit.training.config.reading import find_config
from headedit.training.recipes import RECIPES, make_recipe
from headedit.training.tuning.methods import METHODS as ADAPTERS
from headedit.training.tuning.methods import MethodConfig

MISTAKES = {
    "a recipe": (lambda: make_recipe("?", {}), RECIPES),
    "a method": (lambda: method("?"), methods()),
    "a method of a comparison": (lambda: check_method("?", {}), METHODS),
    "an adapter of PEFT": (lambda: MethodConfig(name="?"), ADAPTERS),
    "a config": (lambda: find_config("?"), shipped_configs()),
    "a task": (lambda: find_task("?"), packaged_tasks()),
    "a field of the data": (lambda: check_fields({"?": "x"}), NAMES),
    "a dtype": (lambda: ModelConfig(name="x", dtype="?"), ["auto", "float32", "bfloat16", "float16"]),
    "a kind of gates": (lambda: EditConfig(gates="?"), ["separate", "shared"]),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_message_lists_what_is_possible_once(what):
    call, names = MISTAKES[what]
    with pytest.raises(HeadEditError) as caught:
        call()
    for name in names:
        found = re.findall(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", str(caught.value))
        assert len(found) == 1, (name, str(caught.value))


def test_a_suggestion_names_the_closest_option_and_the_list_once():
    options = ["sort", "copy"]
    assert suggest("sorted", options) == " Did you mean 'sort'?"
    assert suggest("?", options) == " Possible: copy, sort."
    assert suggest("?", options, elsewhere=True) == ""
    assert suggest("sorted", options, title="Tasks") == " Did you mean 'sort'? Tasks: sort, copy."
    assert suggest("?", options, title="Tasks") == " Tasks: sort, copy."
