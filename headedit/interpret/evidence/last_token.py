"""The output of every head at the last token of an example, before any edit."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from headedit.data.batches import token_embeddings
from headedit.data.encoding import check_lengths
from headedit.edits import HeadEdits
from headedit.errors import HeadEditError
from headedit.hf.modes import evaluating
from headedit.io.bars import tqdm
from headedit.specs import HeadSite


def last_outputs(
    edits: HeadEdits, sites: Sequence[HeadSite], rows: Sequence[list[int]], *, batch_size: int, progress: bool
) -> list[Tensor]:
    """Reads the outputs of the base model's heads, in eval mode, at the last token of each row of token ids.

    Returns:
        For each site [rows, heads, head_dim], float32 on the CPU. If a module runs several times in a forward pass, the
        last time counts.

    Raises:
        HeadEditError: a row is longer than the model's context, or a site's module does not run, or gets an input of
            another shape than the spec says, or with values that are not finite.
    """
    model = edits.model
    check_lengths(rows, model)
    known = signature(model.forward).parameters
    options = {name: value for name, value in (("use_cache", False), ("logits_to_keep", 1)) if name in known}
    device = token_embeddings(model).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [torch.empty(len(rows), site.heads, site.head_dim) for site in sites]
    reader = _Reader()
    with reader.hooked(sites), edits.disable_adapter(), evaluating(model):
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="reading heads", unit="batch", disable=not progress, leave=False):
            chosen = order[start : start + batch_size]
            ids = pad_sequence([torch.tensor(rows[i]) for i in chosen], batch_first=True)
            ends = torch.tensor([len(rows[i]) - 1 for i in chosen])
            mask = torch.arange(ids.shape[1]) <= ends[:, None]
            reader.expect(ends, ids.shape)
            model(input_ids=ids.to(device), attention_mask=mask.long().to(device), **options)
            for site, outputs in zip(sites, found, strict=True):
                outputs[chosen] = reader.of(site)
    return found


class _Reader:
    """Records the heads of each site at the tokens ``ends``, [batch], by pre-hooks that run before all others."""

    def __init__(self) -> None:
        self.ends, self.shape = torch.empty(0), torch.Size((0, 0))
        self.outputs: dict[str, Tensor] = {}

    @contextmanager
    def hooked(self, sites: Sequence[HeadSite]) -> Iterator[None]:
        """Keeps the hooks on the sites' modules while the context lasts."""
        with ExitStack() as stack:
            for site in sites:
                stack.callback(site.module.register_forward_pre_hook(self._hook(site), prepend=True).remove)
            yield

    def expect(self, ends: Tensor, shape: torch.Size) -> None:
        """Announces a batch of a shape, [batch, tokens], whose rows end at these tokens."""
        self.ends, self.shape, self.outputs = ends, shape, {}

    def of(self, site: HeadSite) -> Tensor:
        """The recorded heads of a site, [batch, heads, head_dim]."""
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
            z, (batch, tokens) = args[0], self.shape
            if z.numel() != batch * tokens * site.width or z.shape[-1] > site.width:
                raise HeadEditError(
                    f"{site.path} gets an input of shape {tuple(z.shape)}, but its spec says {site.heads} heads of "
                    f"width {site.head_dim} ({site.width} in the last dimension). Correct the spec."
                )
            heads = z.reshape(batch, tokens, site.heads, site.head_dim)  # also from [..., groups, width / groups]
            rows = torch.arange(batch, device=z.device)
            self.outputs[site.path] = heads[rows, self.ends.to(z.device)].float().cpu()

        return keep
