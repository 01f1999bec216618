"""Edits in vLLM: one engine, compiled as ever, and another edit for each request of a batch.

vLLM finds ``plugin`` by its entry point ``vllm.general_plugins`` and calls it in each process. Edits are served
where ``HEADEDIT_EDITS`` lists folders of them; without it vLLM is as it was, except that a request for an edit is
refused.

The parts, in the order of a request: ``start`` and ``refusals`` (the engine's settings), ``places`` (which modules are
sites), ``requests`` and ``registry`` (which edit a request chooses), ``chosen`` (how it is named on its way),
``manager`` (which slot it has in a worker), ``tokens`` and ``buffers`` (what the compiled model reads); ``http`` and
``live`` load and unload. ``names`` lists what is changed in vLLM.
"""

from headedit.serving.folders import listed_folders

_done: list[bool] = []


def plugin() -> None:
    """Makes vLLM ready to serve edits, once in a process.

    Raises:
        HeadEditError: edits are to be served, and this vLLM lacks a name that is needed.
    """
    from headedit.errors import HeadEditError

    if _done:
        return
    _done.append(True)
    try:
        _change_vllm()
    except HeadEditError:
        if listed_folders() is not None:
            raise


def _change_vllm() -> None:
    from headedit.serving.vllm import http, names, requests, start, worker

    changes = [
        (names.CONFIG, start.with_edits),
        (names.INPUTS, requests.with_edits),
        *((name, requests.without_beams) for name in names.BEAMS),
        (names.LOADER, worker.without_lora),
        (names.MODEL, worker.with_edits),
        (names.BATCH, worker.with_slots),
        (names.LIST, http.with_static_edits),
        (names.LOAD, http.with_loading),
        (names.UNLOAD, http.with_unloading),
    ]
    for name in (*(name for name, _ in changes), *names.RELIED_ON):
        names.find(name)  # all of them, before any is changed
    for name, around in changes:
        names.change(name, around)
