"""Recipes: named training methods. Each is a dataclass whose fields can be overridden one by one."""

from typing import Any

from headedit.errors import HeadEditError, suggest
from headedit.io import strict
from headedit.training.recipes.base import Recipe
from headedit.training.recipes.jola import Jola
from headedit.training.recipes.jola_forms import JolaPaper, JolaReleased
from headedit.training.recipes.localise import Localise
from headedit.training.recipes.lofit import Lofit
from headedit.training.recipes.lofit_released import LofitReleased
from headedit.training.recipes.refit import Refit, Ungated
from headedit.training.recipes.sparse import Ist, Rst

RECIPES: dict[str, type[Recipe]] = {
    "localise": Localise,
    "jola": Jola,
    "lofit": Lofit,
    "ist": Ist,
    "rst": Rst,
    "refit": Refit,
    "ungated": Ungated,
    "jola-paper": JolaPaper,
    "jola-released": JolaReleased,
    "lofit-released": LofitReleased,
}

DEFAULT = "localise"

__all__ = ["DEFAULT", "RECIPES", "Recipe", "make_recipe"]


def make_recipe(name: str, overrides: dict[str, Any]) -> Recipe:
    """The recipe with a name, with some of its fields changed.

    Raises:
        HeadEditError: there is no such recipe or field, or a value is of a wrong type or out of range.
    """
    if name not in RECIPES:
        raise HeadEditError(f"There is no recipe '{name}'.{suggest(name, RECIPES, title='Recipes')}")
    return strict.build(RECIPES[name], overrides, f"recipe {name}")
