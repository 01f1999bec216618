"""Another edit for each row of a batch: one multiply-add per site, with vectors gathered by row."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from headedit.edits.adapter import Adapter
from headedit.edits.affine import apply_affine, heads_shape
from headedit.edits.site_edit import SiteEdit
from headedit.edits.site_input import take
from headedit.edits.strength import Strength
from headedit.errors import HeadEditError
from headedit.hf.sharding import Part
from headedit.specs import HeadSite


class RoutedEdit(nn.Module):
    """The edits of one site, one for each row of the batch, with their values in eval mode when this was made.

    Buffers:
        scale, offset: [rows, heads * head_dim]; 1 and 0 in a row that is not edited.

    Fields:
        positions: the tokens that the edits act on: of all rows, or of each.
    """

    idle = False

    def __init__(
        self, site: HeadSite, edits: Sequence[SiteEdit | None], dials: Sequence[Strength | None], index: Tensor
    ) -> None:
        """Gathers the vectors.

        Args:
            site: the site.
            edits: the edits that rows can have; None for the base model.
            dials: the strength of each; None for its own.
            index: which of them each row has, [rows].
        """
        super().__init__()
        self.heads, self.head_dim, self.groups, self.path = site.heads, site.head_dim, site.groups, site.path
        kinds = {edit.positions for edit in edits if edit is not None}
        of_each = ["all" if edit is None else edit.positions for edit in edits]
        self.positions = kinds.pop() if len(kinds) == 1 else tuple(of_each[i] for i in index.tolist())
        device = next(p.device for edit in edits if edit is not None for p in edit.parameters())
        nothing = torch.ones(site.width, device=device), torch.zeros(site.width, device=device)
        pairs = [
            nothing if edit is None else edit.scale_and_offset(dial) for edit, dial in zip(edits, dials, strict=True)
        ]
        self.scale: Tensor
        self.offset: Tensor
        for name, vectors in zip(("scale", "offset"), zip(*pairs, strict=True), strict=True):
            table = torch.stack([vector.to(device) for vector in vectors])
            self.register_buffer(name, table[index.to(device)], persistent=False)

    def forward(self, z: Tensor, part: Part | None = None) -> Tensor:
        """The edited input of the projection, in the shape and dtype it came in.

        The batch is the first dimension. It may hold each row several times, one after the other, as beams and
        several returned sequences do.

        Args:
            z: the input, or the part of its last dimension that this process has.
            part: which part that is; None for all.

        Raises:
            HeadEditError: its size is not a multiple of the number of rows.
        """
        rows = self.scale.shape[0]
        if z.shape[0] % rows:
            raise HeadEditError(
                f"route() was given {rows} rows, but the batch has {z.shape[0]}, which is not a multiple of it. Name "
                "an adapter, or None, for every row of the batch."
            )
        scale, offset = (self.scale, self.offset) if part is None else take((self.scale, self.offset), part)
        heads = heads_shape(z, self) if part is None else z.shape[-1:]
        grouped = z.view(rows, z.shape[0] // rows, *z.shape[1:])
        shape = (rows, *(1,) * (grouped.dim() - 1 - len(heads)), *heads)
        scale, offset = (vector.to(z.device).reshape(shape) for vector in (scale, offset) if vector is not None)
        return apply_affine(grouped, scale, offset).view(z.shape)


@torch.no_grad()
def route_rows(
    adapters: Mapping[str, Adapter], names: Sequence[str | None], dials: Mapping[Adapter, Strength]
) -> dict[str, RoutedEdit]:
    """The edit that every site applies when each row of a batch has its own adapter, by the site's name.

    Args:
        adapters: the edits by name.
        names: of the adapter of each row; None for the base model.
        dials: the strengths of those adapters that are to have another one than their own.
    """
    used = list(dict.fromkeys(names))
    index = torch.tensor([used.index(name) for name in names])
    sites: dict[str, HeadSite] = {}
    edits: dict[str, dict[str | None, SiteEdit]] = {}
    for name in used:
        for site, edit in () if name is None else adapters[name].pairs():
            sites[site.name] = site
            edits.setdefault(site.name, {})[name] = edit
    strengths = [None if name is None else dials.get(adapters[name]) for name in used]
    return {key: RoutedEdit(sites[key], [of.get(name) for name in used], strengths, index) for key, of in edits.items()}
