"""The outputs of every head at chosen tokens of examples, before any edit."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from headedit.data.batches import IGNORED, Encoded, batches
from headedit.data.encoding import check_lengths
from headedit.edits import HeadEdits
from headedit.edits.site_input import whole_input
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.specs import HeadSite


def last_outputs(
    edits: HeadEdits, sites: Sequence[HeadSite], rows: Sequence[list[int]], *, batch_size: int, progress: bool
) -> list[Tensor]:
    """Reads the outputs of the base model's heads at the last token of each row of token ids; see ``head_outputs``."""
    check_lengths(rows, edits.model)
    marked = [{"input_ids": ids, "labels": [IGNORED] * (len(ids) - 1) + ids[-1:]} for ids in rows]
    return head_outputs(edits, sites, marked, batch_size=batch_size, progress=progress)


def head_outputs(
    edits: HeadEdits, sites: Sequence[HeadSite], rows: Sequence[Encoded], *, batch_size: int, progress: bool
) -> list[Tensor]:
    """Reads the outputs of the base model's heads, in eval mode, at the labelled tokens of each row: their mean.

    The mean is that of the row's own tokens whatever the batch, so padding never counts.

    Args:
        edits: the handle; switched off during the call.
        sites: the sites to read.
        rows: token ids, each with at least one label that is not ``IGNORED``, none longer than the model's context.
        batch_size: rows per batch.
        progress: show a bar.

    Returns:
        For each site [rows, heads, head_dim], float32 on the CPU. If a module runs several times in a forward pass, the
        last time counts.

    Raises:
        HeadEditError: a site's module does not run, or gets an input of another shape than the spec says, or with
            values that are not finite.
    """
    model = edits.model
    found = [torch.empty(len(rows), site.heads, site.head_dim) for site in sites]
    reader = _Reader()
    with reader.hooked(sites), edits.disable_adapter(), evaluating(model), torch.no_grad():
        for chosen, inputs, labels in batches(model, rows, batch_size, what="reading heads", progress=progress):
            reader.expect(labels != IGNORED)
            model(**_known(model, {**inputs, "logits_to_keep": 1}))
            for site, outputs in zip(sites, found, strict=True):
                outputs[chosen] = reader.of(site)
    return found


def _known(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that every model takes, and those of the others that this one names."""
    named = signature(model.forward).parameters
    return {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask") or key in named}


class _Reader:
    """Records the mean of each site's heads over the tokens ``chosen``, [batch, tokens], before all other pre-hooks."""

    def __init__(self) -> None:
        self.chosen = torch.empty(0, 0, dtype=torch.bool)
        self.outputs: dict[str, Tensor] = {}

    @contextmanager
    def hooked(self, sites: Sequence[HeadSite]) -> Iterator[None]:
        """Keeps the hooks on the sites' modules while the context lasts."""
        with ExitStack() as stack:
            for site in sites:
                stack.callback(site.module.register_forward_pre_hook(self._hook(site), prepend=True).remove)
            yield

    def expect(self, chosen: Tensor) -> None:
        """Announces a batch, of which these tokens are read."""
        self.chosen, self.outputs = chosen, {}

    def of(self, site: HeadSite) -> Tensor:
        """The recorded means of a site's heads, [batch, heads, head_dim]."""
        if site.path not in self.outputs:
            raise HeadEditError(f"{site.path} did not run in a forward pass over text; its heads cannot be read.")
        outputs = self.outputs[site.path]
        if not outputs.isfinite().all():
            raise HeadEditError(
                f"{site.path}: a head's output is not finite. Load the model in another dtype, such as bfloat16."
            )
        return outputs

    def _hook(self, site: HeadSite) -> Any:
        def keep(module: Any, args: tuple[Any, ...]) -> None:
            z, (batch, tokens) = whole_input(module, args[0], site.width, site.path), self.chosen.shape
            if z.numel() != batch * tokens * site.width or z.shape[-1] > site.width:
                raise HeadEditError(
                    f"{site.path} gets an input of shape {tuple(z.shape)}, but its spec says {site.heads} heads of "
                    f"width {site.head_dim} ({site.width} in the last dimension). Correct the spec."
                )
            heads = z.reshape(batch, tokens, site.heads, site.head_dim)  # also from [..., groups, width / groups]
            chosen = self.chosen.to(z.device)
            means = [row[of_row].float().mean(0) for row, of_row in zip(heads, chosen, strict=True)]
            self.outputs[site.path] = torch.stack(means).cpu()

        return keep
