"""The edits of one worker: which are held in memory, which are in a slot, and the slot of each token of a pass.

It stands where vLLM keeps a worker's LoRA manager, with the methods that vLLM calls there. Edits that were added stay
in the worker's memory until they are removed; slots are filled from there when a request needs them, and the least
recently used one is taken. vLLM holds back requests for which no slot would be left.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from headedit.edits.adapter import Adapter
from headedit.errors import HeadEditError
from headedit.serving.saved_edit import digest, read_values, vectors
from headedit.serving.vllm.buffers import clear, write
from headedit.serving.vllm.chosen import unpack
from headedit.serving.vllm.sites import RankSite
from headedit.serving.vllm.tokens import TokenSlots

Values = tuple[str, float]


class EditManager:
    """The edits of one worker.

    Args:
        sites: those of this rank.
        slots: how many edits a batch can have.
        tokens: the slot of each token.
    """

    def __init__(self, sites: Mapping[str, RankSite], slots: int, tokens: TokenSlots) -> None:
        self._sites, self._tokens = sites, tokens
        self._held: dict[str, Adapter] = {}
        self._digest_of: dict[int, str] = {}
        self._slot_of: OrderedDict[Values, int] = OrderedDict()  # the least recently used one is the first
        self._free = list(range(slots, 0, -1))
        self._warmup: set[int] = set()

    def add_adapter(self, request: Any) -> bool:
        """Reads an edit into memory.

        Raises:
            HeadEditError: it cannot be read, or is another one than was checked.
        """
        chosen = unpack(request.lora_name)
        if chosen.digest in self._held:
            self._digest_of[request.lora_int_id] = chosen.digest
            return False
        adapter = read_values(request.lora_path)
        if digest(adapter) != chosen.digest:
            raise HeadEditError(f"{request.lora_path}: these edits changed while they were loaded. Load them again.")
        self._held[chosen.digest] = adapter
        self._digest_of[request.lora_int_id] = chosen.digest
        return True

    def remove_adapter(self, number: int) -> bool:
        """Forgets an edit, with all strengths of it."""
        gone = self._digest_of.get(number)
        if gone is None:
            return False
        self._digest_of = {other: of for other, of in self._digest_of.items() if of != gone}
        self._held.pop(gone, None)
        for values in [values for values in self._slot_of if values[0] == gone]:
            self._free.append(self._slot_of.pop(values))
        return True

    def list_adapters(self) -> set[int]:
        """The numbers of the edits in memory."""
        return set(self._digest_of)

    def pin_adapter(self, number: int) -> bool:
        """Whether an edit is in memory, where all stay until they are removed."""
        return number in self._digest_of

    def remove_all_adapters(self) -> None:
        """Ends a warm-up, and empties the slots; what is in memory stays, so that later requests find it."""
        self._warmup.clear()
        self._free += self._slot_of.values()
        self._slot_of.clear()

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Gets ready for a pass.

        Args:
            requests: the edits that act in it.
            mapping: has the number of each token's edit.
        """
        slot_of = self._slots({request.lora_int_id: request for request in requests})
        self._tokens.write(numpy.array([slot_of.get(number, 0) for number in mapping.index_mapping], dtype=numpy.int64))

    def set_batch(self, batch: Any, counts: Any) -> None:
        """Gets ready for a pass over a batch of the model runner.

        Args:
            batch: vLLM's ``InputBatch``.
            counts: the number of tokens of each request in the pass.
        """
        numbers = batch.request_lora_mapping[: batch.num_reqs]
        if not numbers.any():
            self._tokens.write_none()
            return
        requests = batch.lora_id_to_lora_request
        slot_of = self._slots(requests)
        slots = numpy.array([slot_of.get(number, 0) for number in numbers.tolist()], dtype=numpy.int64)
        of_tokens = slots.repeat(counts)
        end = counts.cumsum()
        for row, number in enumerate(numbers.tolist()):
            positions = unpack(requests[number].lora_name).positions if number in requests else "all"
            if positions != "all":
                first = int(batch.num_computed_tokens_cpu[row])
                column = numpy.arange(first, first + int(counts[row]))
                acting = _acting(positions, column, int(batch.num_prompt_tokens[row]))
                of_tokens[end[row] - counts[row] : end[row]][~acting] = 0
        self._tokens.write(of_tokens)

    def _slots(self, requests: Mapping[int, Any]) -> dict[int, int]:
        """The slot of each edit that acts in a pass, by its number."""
        chosen = {
            number: unpack(request.lora_name).values
            for number, request in requests.items()
            if number not in self._warmup
        }
        for values in chosen.values():
            if values in self._slot_of:
                self._slot_of.move_to_end(values)
        wanted = set(chosen.values())
        for number, values in chosen.items():
            if values not in self._slot_of:
                if values[0] not in self._held:
                    self.add_adapter(requests[number])
                self._fill(values, wanted)
        return {number: self._slot_of[values] for number, values in chosen.items()}

    def _fill(self, values: Values, wanted: set[Values]) -> None:
        if not self._free:
            oldest = next(other for other in self._slot_of if other not in wanted)
            self._free.append(self._slot_of.pop(oldest))
        slot = self._free.pop()
        of_sites = vectors(self._held[values[0]], values[1])
        for name, site in self._sites.items():
            if name in of_sites:
                scale, offset = of_sites[name]
                write(site.module, slot, scale[site.share], offset[site.share])
            else:
                clear(site.module, slot)
        self._slot_of[values] = slot

    def add_dummy_lora(self, request: Any, rank: int) -> bool:
        """Remembers a number of vLLM's warm-up, for which the identity acts."""
        self._warmup.add(request.lora_int_id)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """Nothing depends on it."""
        return default_rank

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Nothing is cached in a warm-up."""
        yield

    def supports_tower_connector_lora(self) -> bool:
        """Edits are of the text decoder."""
        return False


def _acting(positions: str, column: Any, prompt: int) -> Any:
    """Which tokens of a request an edit acts on.

    Args:
        positions: those of the edit.
        column: the places of the tokens in the request's sequence.
        prompt: the number of the prompt's tokens.
    """
    if positions == "prompt":
        return column < prompt
    if positions == "generated":
        return column >= prompt
    return column == prompt - 1


def worker_manager(model: nn.Module, vllm_config: Any, device: torch.device) -> EditManager:
    """The edits of a worker, with those that are served from the start in memory.

    Raises:
        HeadEditError: a site is not where the table says, or an edit cannot be read.
    """
    from headedit.serving.vllm.chosen import Ids, as_request, choose
    from headedit.serving.vllm.sites import rank_sites
    from headedit.serving.vllm.slots import slots_of

    settings = slots_of(vllm_config)
    assert settings is not None
    tokens = TokenSlots(_most_tokens(vllm_config), device)
    sites = rank_sites(model, settings.places, settings.max_loras, tokens.on_device)
    manager = EditManager(sites, settings.max_loras, tokens)
    ids = Ids()
    for edit in settings.edits:
        manager.add_adapter(as_request(choose(edit, edit.strength), edit.path, ids))
    return manager


def _most_tokens(vllm_config: Any) -> int:
    """The largest number of tokens of a pass, with those that fill up a captured graph."""
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    most = max(vllm_config.scheduler_config.max_num_batched_tokens, captured)
    return int(most) + int(vllm_config.parallel_config.tensor_parallel_size)
