"""lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness) on the prompts and options of a task."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

from torch import nn

from headedit.errors import HeadEditError
from headedit.evaluation.answers.extraction import extract_option, first_line
from headedit.evaluation.answers.predictions import Prediction
from headedit.evaluation.tasks.examples import Example
from headedit.evaluation.tasks.task import Task
from headedit.io.optional import import_optional


def peer_reason() -> str:
    """Why the harness cannot be measured; empty if it can."""
    try:
        import_optional("lm_eval.models.huggingface", "The comparison")
    except HeadEditError as error:
        return f"left out: {error}"
    return ""


class Peer:
    """The harness's own model class around a model, asked directly, so that no task files are read."""

    NAME: ClassVar[str] = "lm-evaluation-harness"

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int, stop: str = "\n") -> None:
        """Wraps a model, which stays as it is; ``stop`` ends what it generates, empty for the end-of-text alone."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        huggingface = import_optional("lm_eval.models.huggingface", "The comparison")
        self._lm = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._until = [stop] if stop else []

    @staticmethod
    def version() -> str:
        """The version that is installed."""
        return version("lm_eval")

    def answers(self, task: Task, examples: Sequence[Example], new_tokens: int) -> list[Prediction]:
        """What it answers to the examples: the likeliest option, or the first line of what it generates greedily."""
        if task.scoring == "loglikelihood":
            return self._choices(task, examples)
        settings = {"until": list(self._until), "max_gen_toks": new_tokens, "do_sample": False}
        asked = [_instance("generate_until", (str(example.prompt), dict(settings))) for example in examples]
        texts = self._lm.generate_until(asked, disable_tqdm=True)
        return [
            _prediction(
                i,
                example,
                extract_option(text, example.labels, example.options) if example.labels else first_line(text) or None,
                text=text,
            )
            for i, (example, text) in enumerate(zip(examples, texts, strict=True))
        ]

    def _choices(self, task: Task, examples: Sequence[Example]) -> list[Prediction]:
        asked = [
            _instance("loglikelihood", (str(example.prompt), task.delimiter + label))
            for example in examples
            for label in example.labels
        ]
        coming = iter(self._lm.loglikelihood(asked, disable_tqdm=True))
        found = []
        for i, example in enumerate(examples):
            scores = [next(coming)[0] for _ in example.labels]
            best = max(range(len(scores)), key=scores.__getitem__)
            found.append(_prediction(i, example, example.labels[best], scores=scores))
        return found


def _instance(kind: str, arguments: tuple[Any, ...]) -> Any:
    module = import_optional("lm_eval.api.instance", "The comparison")
    return module.Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def _prediction(
    row: int, example: Example, chosen: str | None, *, text: str = "", scores: list[float] | None = None
) -> Prediction:
    return Prediction(
        system=Peer.NAME,
        row=row,
        where=example.where,
        text=text,
        prediction=chosen,
        answers=list(example.answers),
        tokens=0,
        seconds=0.0,
        scores=scores,
    )
